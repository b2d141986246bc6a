//! Requests from a file, as `--config-file` names one.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use vmm::control::Control;

use crate::http::Response;
use crate::routes::{self, RequestContext};
use crate::service::Process;

/// Why a file was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not made of JSON as it should be.
    #[error("the configuration file is no JSON object with {0}")]
    Json(&'static str, #[source] serde_json::Error),
    /// Nothing to boot.
    #[error("the configuration file has no \"boot-source\", and there is no guest without an image; add one")]
    NoBootSource,
    /// A part of it cannot be done.
    #[error("{key:?} of the configuration file")]
    Part {
        /// Where in the file it is.
        key: String,
        /// What a client would be told.
        #[source]
        source: routes::Error,
    },
}

/// The parts of a file.
type Parts<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;
type SectionHandler = fn(&mut RequestContext<'_>) -> Result<Response, routes::Error>;

/// What is done, in this order, and whether it is done for each element of a list.
const PARTS: [(&str, bool, SectionHandler); 7] = [
    ("logger", false, routes::put_logger),
    ("metrics", false, routes::put_metrics),
    ("machine-config", false, routes::put_machine),
    ("boot-source", false, routes::put_boot_source),
    ("drives", true, routes::put_drive),
    ("network-interfaces", true, routes::put_interface),
    ("vsock", false, routes::put_vsock),
];

/// Unknown keys that are named in the log.
const NAMED: usize = 8;

pub(crate) fn apply(control: &mut Control, process: &mut Process, text: &str) -> Result<(), Error> {
    let parts: Parts<'_> = serde_json::from_str(text)
        .map_err(|error| Error::Json("such keys as \"boot-source\" and \"drives\"", error))?;
    check(&parts)?;
    for (key, is_list, handle) in PARTS {
        let Some(value) = parts.get(key).filter(|value| value.get() != "null") else {
            continue;
        };
        let bodies = if is_list { elements(value)? } else { vec![*value] };
        for (index, body) in bodies.into_iter().enumerate() {
            let mut call = RequestContext {
                control,
                process,
                id: None,
                body: body.get().as_bytes(),
            };
            handle(&mut call).map_err(|source| Error::Part {
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

/// Looks at the keys before anything is done.
fn check(parts: &Parts<'_>) -> Result<(), Error> {
    let mut unknown = Vec::new();
    for (key, value) in parts {
        if PARTS.iter().any(|(known, _, _)| known == key) {
            continue;
        }
        match routes::check_key(key) {
            Some(source) if !is_empty(value) => {
                let key = key.clone().into_owned();
                return Err(Error::Part { key, source });
            }
            Some(_) => {}
            None => unknown.push(format!("{key:.64?}")),
        }
    }
    if !unknown.is_empty() {
        let count = unknown.len();
        unknown.truncate(NAMED);
        let names = unknown.join(", ");
        log::warn!("ignored in the configuration file, {count} in all: {names}");
    }
    match parts.get("boot-source") {
        Some(value) if value.get() != "null" => Ok(()),
        _ => Err(Error::NoBootSource),
    }
}

fn elements(value: &RawValue) -> Result<Vec<&RawValue>, Error> {
    Vec::deserialize(value)
        .map_err(|error| Error::Json("a list of objects for its drives and interfaces", error))
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
