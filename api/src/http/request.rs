//! What a client asks for.

use std::fmt;

/// The method of a request. Case counts, as HTTP has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// Asks for something.
    Get,
    /// Sets something.
    Put,
    /// Changes a part of something.
    Patch,
    /// Removes something.
    Delete,
    /// Any other, by its name: never empty, only characters that HTTP allows there.
    Other(String),
}

impl Method {
    /// The method called `name`.
    pub fn new(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "PUT" => Self::Put,
            "PATCH" => Self::Patch,
            "DELETE" => Self::Delete,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// One request, with all of its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub method: Method,
    /// To what: the path alone, percent-decoded, starting with `/` unless the client sent something else there. Of
    /// `http://host/path` it is `/path`.
    pub path: String,
    /// What came after the first `?`, as it came.
    pub query: Option<String>,
    /// The body, empty if there was none; never longer than [`Limits::body`](super::Limits::body).
    pub body: Vec<u8>,
}
