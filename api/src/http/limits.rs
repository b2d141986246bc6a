//! What one client, and all of them together, may take of the process.

/// How much the server accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// The longest body, in bytes.
    pub body: usize,
    /// The longest head, which is the request line and the headers, in bytes.
    pub head: usize,
    /// The longest line of a head, in bytes, its end not counted.
    pub line: usize,
    /// Clients that are served at once.
    pub connections: usize,
}

impl Default for HttpLimits {
    /// Firecracker's, which has none for a head.
    fn default() -> Self {
        Self {
            body: 51200,
            head: 8192,
            line: 1024,
            connections: 10,
        }
    }
}
