//! What the server says.

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientResponse {
    /// The status code, from 200 on.
    pub status: u16,
    /// The body, empty if there is none.
    pub body: Vec<u8>,
}

impl ClientResponse {
    /// Whether the server did what it was asked for.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}
