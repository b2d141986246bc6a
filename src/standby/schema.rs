//! Descriptions of JSON objects: they check the bodies of requests, and are the schemas of `resources/standby.yaml`.

use serde_json::{Map, Value};

/// Kind of a value.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Text of 1 to this number of bytes.
    Text(usize),
    /// Absolute path.
    Path,
    /// True or false.
    Boolean,
    /// Integer in this range.
    Integer(u64, u64),
    /// One of these words.
    Words(&'static [&'static str]),
    /// Object.
    Object(&'static Schema),
    /// Array of at most this number of objects.
    Objects(&'static Schema, usize),
    /// Array of at most this number of integers in this range.
    Integers(u64, u64, usize),
    /// Array of at most this number of texts.
    Texts(usize),
}

/// Key of an object.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name of the key.
    pub name: &'static str,
    /// Description.
    #[allow(dead_code, reason = "only the specification has it")]
    pub about: &'static str,
    /// Kind of the value.
    pub kind: Kind,
    /// True if the object must have the key.
    pub required: bool,
}

/// Description of an object.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// Name in the specification.
    #[allow(dead_code, reason = "only the specification has it")]
    pub name: &'static str,
    /// Description.
    #[allow(dead_code, reason = "only the specification has it")]
    pub about: &'static str,
    /// Its keys.
    pub fields: &'static [Field],
}

/// Creates an optional key.
pub const fn optional(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field {
        name,
        about,
        kind,
        required: false,
    }
}

/// Creates a required key.
pub const fn required(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field {
        required: true,
        ..optional(name, kind, about)
    }
}

impl Schema {
    /// Parses `body` as an object of this schema. A null stands for an absent key.
    ///
    /// # Errors
    /// A text that names the invalid key.
    pub fn parse(&self, body: &[u8]) -> Result<Map<String, Value>, String> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| format!("cannot parse the body as JSON: {error}"))?;
        self.accept(value)
    }

    /// Checks that `value` is an object of this schema.
    ///
    /// # Errors
    /// A text that names the invalid key.
    pub fn accept(&self, value: Value) -> Result<Map<String, Value>, String> {
        let Value::Object(mut object) = value else {
            return Err("cannot use the body: it is no JSON object".into());
        };
        self.check(&mut object)?;
        Ok(object)
    }

    /// Checks `object`, and removes null values. The error starts with the path of the key, which only an error composes.
    fn check(&self, object: &mut Map<String, Value>) -> Result<(), String> {
        object.retain(|_, value| !value.is_null());
        // One pass over the keys: a restart checks those of all instances.
        for (key, value) in object.iter_mut() {
            let Some(field) = self.fields.iter().find(|field| field.name == key.as_str()) else {
                return Err(format!("{key}: the key is unknown; remove it"));
            };
            field.kind.check(value).map_err(|error| format!("{key}{error}"))?;
        }
        let mut required = self.fields.iter().filter(|field| field.required);
        match required.find(|field| !object.contains_key(field.name)) {
            Some(field) => Err(format!("{}: the key is missing; add it", field.name)),
            None => Ok(()),
        }
    }
}

impl Kind {
    /// Checks `value`. The error starts with the path below it.
    fn check(self, value: &mut Value) -> Result<(), String> {
        let is_valid = match (self, &*value) {
            (Self::Text(max), Value::String(text)) => is_text(text, max),
            (Self::Path, Value::String(text)) => is_text(text, MAX_PATH) && text.starts_with('/'),
            (Self::Boolean, Value::Bool(_)) => true,
            (Self::Integer(min, max), Value::Number(number)) => number
                .as_u64()
                .is_some_and(|number| (min..=max).contains(&number)),
            (Self::Words(words), Value::String(text)) => words.contains(&text.as_str()),
            (Self::Objects(_, max) | Self::Integers(_, _, max) | Self::Texts(max), Value::Array(list)) => {
                list.len() <= max
            }
            (Self::Object(_), Value::Object(_)) => true,
            _ => false,
        };
        if !is_valid {
            return Err(format!(": expected {}", self.describe()));
        }
        match (self, value) {
            (Self::Object(schema), Value::Object(object)) => {
                schema.check(object).map_err(|error| format!(".{error}"))
            }
            (kind, Value::Array(list)) => {
                let kind = match kind {
                    Self::Objects(schema, _) => Self::Object(schema),
                    Self::Integers(min, max, _) => Self::Integer(min, max),
                    _ => Self::Text(MAX_PATH),
                };
                for (index, item) in list.iter_mut().enumerate() {
                    kind.check(item).map_err(|error| format!("[{index}]{error}"))?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Text(max) => format!("a text of 1 to {max} bytes without control characters"),
            Self::Path => "an absolute path".into(),
            Self::Boolean => "true or false".into(),
            Self::Integer(min, max) => format!("an integer from {min} to {max}"),
            Self::Words(words) => format!("one of {}", words.join(", ")),
            Self::Object(_) => "an object".into(),
            Self::Objects(_, max) | Self::Integers(_, _, max) | Self::Texts(max) => {
                format!("an array of at most {max} values")
            }
        }
    }
}

/// Maximum length of a path in bytes, without its end (`PATH_MAX`).
const MAX_PATH: usize = 4095;

fn is_text(text: &str, max: usize) -> bool {
    !text.is_empty() && text.len() <= max && !text.contains(char::is_control)
}

#[cfg(test)]
impl Schema {
    /// Returns the schema in the format of the specification.
    pub fn yaml(&self) -> String {
        let quote = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let mut lines = vec![
            format!("    {}:", self.name),
            format!("      description: {}", quote(self.about)),
            "      type: object".into(),
            "      additionalProperties: false".into(),
        ];
        let required: Vec<_> = self
            .fields
            .iter()
            .filter(|field| field.required)
            .map(|field| field.name)
            .collect();
        if !required.is_empty() {
            lines.push(format!("      required: [{}]", required.join(", ")));
        }
        lines.push("      properties:".into());
        for field in self.fields {
            let (kind, about) = (field.kind.yaml(), quote(field.about));
            // Null stands for an absent key.
            let nullable = if field.required { "" } else { "nullable: true, " };
            lines.push(format!(
                "        {}: {{{kind}, {nullable}description: {about}}}",
                field.name
            ));
        }
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
impl Kind {
    fn yaml(self) -> String {
        match self {
            Self::Text(max) => format!("type: string, minLength: 1, maxLength: {max}"),
            Self::Path => format!("type: string, pattern: '^/', maxLength: {MAX_PATH}"),
            Self::Boolean => "type: boolean".into(),
            Self::Integer(min, max) => format!("type: integer, minimum: {min}, maximum: {max}"),
            Self::Words(words) => format!("type: string, enum: ['{}']", words.join("', '")),
            Self::Object(schema) => format!("allOf: [{{$ref: '#/components/schemas/{}'}}]", schema.name),
            Self::Objects(schema, max) => {
                format!(
                    "type: array, maxItems: {max}, items: {{$ref: '#/components/schemas/{}'}}",
                    schema.name
                )
            }
            Self::Integers(min, max, count) => {
                format!(
                    "type: array, maxItems: {count}, items: {{{}}}",
                    Self::Integer(min, max).yaml()
                )
            }
            Self::Texts(max) => format!(
                "type: array, maxItems: {max}, items: {{{}}}",
                Self::Text(MAX_PATH).yaml()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Kind, Schema, optional, required};

    const INNER: Schema = Schema {
        name: "Inner",
        about: "",
        fields: &[required("port", Kind::Integer(1, 65535), "")],
    };
    const OUTER: Schema = Schema {
        name: "Outer",
        about: "",
        fields: &[
            required("path", Kind::Path, ""),
            optional("inner", Kind::Objects(&INNER, 2), ""),
            optional("word", Kind::Words(&["a", "b"]), ""),
            optional("ports", Kind::Integers(1, 9, 2), ""),
            optional("flag", Kind::Boolean, ""),
        ],
    };

    #[test]
    fn invalid_key_is_named() {
        for (body, text) in [
            (json!([]), "it is no JSON object"),
            (json!({}), "path: the key is missing"),
            (json!({"path": "x"}), "path: expected an absolute path"),
            (json!({"path": "/\n"}), "path: expected an absolute path"),
            (json!({"path": "/x", "more": 1}), "more: the key is unknown"),
            (json!({"path": "/x", "inner": {}}), "inner: expected an array"),
            (
                json!({"path": "/x", "inner": [{}]}),
                "inner[0].port: the key is missing",
            ),
            (
                json!({"path": "/x", "inner": [{"port": 1}, {"port": 0}]}),
                "inner[1].port: expected an integer from 1 to 65535",
            ),
            (
                json!({"path": "/x", "inner": [1, 2, 3]}),
                "inner: expected an array of at most 2",
            ),
            (json!({"path": "/x", "word": "c"}), "word: expected one of a, b"),
            (
                json!({"path": "/x", "ports": [10]}),
                "ports[0]: expected an integer from 1 to 9",
            ),
            (json!({"path": "/x", "flag": 1}), "flag: expected true or false"),
        ] {
            let error = OUTER.parse(body.to_string().as_bytes()).unwrap_err();
            assert!(error.contains(text), "{body}: {error}");
        }
        assert!(OUTER.parse(b"{").unwrap_err().contains("as JSON"));
    }

    #[test]
    fn null_is_an_absent_key() {
        let body = json!({"path": "/x", "inner": [{"port": 1}], "word": null});
        let object = OUTER.parse(body.to_string().as_bytes()).unwrap();
        assert_eq!(object.len(), 2);
    }
}
