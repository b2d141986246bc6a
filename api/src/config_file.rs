//! Configuration file: request bodies in sections.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use vmm::control::Control;

use crate::process::Process;
use crate::routes::{self, RequestContext};

/// Rejection of a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The JSON is invalid, or has another structure.
    #[error("the configuration file is invalid: it must be a JSON object with {0}")]
    Json(&'static str, #[source] serde_json::Error),
    /// The file has no image.
    #[error("the configuration file has no \"boot-source\": a guest requires an image; add one")]
    NoBootSource,
    /// A section is rejected.
    #[error("cannot apply section {key:?} of the configuration file")]
    Section {
        /// Key of the section, with the index in a list.
        key: String,
        /// Cause, as a client receives it.
        #[source]
        source: routes::Error,
    },
}

/// Sections of a file by key.
type Sections<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// Maximum number of unknown keys in a log message.
const MAX_LOGGED_KEYS: usize = 8;

/// Applies the sections of `text`, see [`Api::apply`](crate::Api::apply).
pub(crate) fn apply(control: &mut Control, process: &mut Process, text: &str) -> Result<(), Error> {
    let sections: Sections<'_> = serde_json::from_str(text)
        .map_err(|error| Error::Json("keys like \"boot-source\" and \"drives\"", error))?;
    check_keys(&sections)?;
    for route in routes::sections() {
        let (key, is_list) = (route.key(), route.is_list());
        let Some(value) = sections.get(key).filter(|value| value.get() != "null") else {
            continue;
        };
        let bodies = if is_list { elements(value)? } else { vec![*value] };
        for (index, body) in bodies.into_iter().enumerate() {
            let mut context = RequestContext {
                control,
                process,
                id: None,
                body: body.get().as_bytes(),
                upgrade: None,
                operation: None,
            };
            route.handle(&mut context).map_err(|source| Error::Section {
                key: if is_list {
                    format!("{key}[{index}]")
                } else {
                    key.to_owned()
                },
                source,
            })?;
        }
    }
    Ok(())
}

/// Checks the keys before any section is applied.
fn check_keys(sections: &Sections<'_>) -> Result<(), Error> {
    let mut unknown = Vec::new();
    for (key, value) in sections {
        if routes::sections().any(|route| route.key() == key) {
            continue;
        }
        match routes::check_key(key) {
            Some(source) if !is_empty(value) => {
                let key = key.clone().into_owned();
                return Err(Error::Section { key, source });
            }
            Some(_) => {}
            None => unknown.push(format!("{key:.64?}")),
        }
    }
    if !unknown.is_empty() {
        let count = unknown.len();
        unknown.truncate(MAX_LOGGED_KEYS);
        let names = unknown.join(", ");
        log::warn!("ignored {count} unknown keys in the configuration file: {names}");
    }
    match sections.get("boot-source") {
        Some(value) if value.get() != "null" => Ok(()),
        _ => Err(Error::NoBootSource),
    }
}

fn elements(value: &RawValue) -> Result<Vec<&RawValue>, Error> {
    Vec::deserialize(value).map_err(|error| Error::Json("a list of objects for drives and interfaces", error))
}

fn is_empty(value: &RawValue) -> bool {
    match serde_json::from_str(value.get()) {
        Ok(Value::Null) => true,
        Ok(Value::Array(list)) => list.is_empty(),
        Ok(Value::Object(object)) => object.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
