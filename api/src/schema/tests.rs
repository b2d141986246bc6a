//! Comparison of the types with the specification: each field is probed at and beyond its limits.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    Action, BootSource, DEFAULT_BOOT_ARGS, Debugger, Drive, DriveUpdate, Error, Field, Logger,
    MachineConfiguration, MachineConfigurationUpdate, Metrics, NetworkInterface, NetworkInterfaceUpdate,
    RateLimiter, RecordWorkingSet, Rule, ScaleToZero, ScaleToZeroAction, Schema, Serial, SnapshotCreate,
    SnapshotLoad, TokenBucket, VmUpdate, Vsock, field, read,
};
use crate::testing::{resolve, specification};

struct Body {
    name: &'static str,
    fields: &'static [Field],
    read: fn(&Value) -> Result<(), Error>,
}

fn body_type<T: Schema>() -> Body {
    Body {
        name: T::NAME,
        fields: T::FIELDS,
        read: |value| read::<T>(value.to_string().as_bytes()).map(drop),
    }
}

fn body_types() -> [Body; 18] {
    [
        body_type::<Action>(),
        body_type::<BootSource>(),
        body_type::<Drive>(),
        body_type::<DriveUpdate>(),
        body_type::<Logger>(),
        body_type::<MachineConfiguration>(),
        body_type::<MachineConfigurationUpdate>(),
        body_type::<Metrics>(),
        body_type::<NetworkInterface>(),
        body_type::<NetworkInterfaceUpdate>(),
        body_type::<ScaleToZero>(),
        body_type::<ScaleToZeroAction>(),
        body_type::<Serial>(),
        body_type::<SnapshotCreate>(),
        body_type::<SnapshotLoad>(),
        body_type::<VmUpdate>(),
        body_type::<Debugger>(),
        body_type::<Vsock>(),
    ]
}

/// Valid body with one path for other values.
struct Probe<'a> {
    specification: &'a Value,
    body_type: &'a Body,
    body: Value,
    path: String,
}

impl Probe<'_> {
    /// Returns the body with `value` at the path, or without the field.
    fn with(&self, value: Option<Value>) -> Value {
        let mut body = self.body.clone();
        let (parent, name) = self.path.rsplit_once('/').unwrap();
        let object = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => object.insert(name.to_owned(), value),
            None => object.remove(name),
        };
        body
    }

    fn expect(&self, value: Option<Value>, accepted: bool) {
        let body = self.with(value);
        let result = (self.body_type.read)(&body);
        assert_eq!(
            result.is_ok(),
            accepted,
            "{}{}: {body}: {result:?}",
            self.body_type.name,
            self.path
        );
    }

    fn accepts(&self, value: Value) {
        self.expect(Some(value), true);
    }

    fn rejects(&self, value: Value) {
        self.expect(Some(value), false);
    }

    /// Probes all constraints of `property`.
    fn property(&self, property: &Value, required: bool) {
        let schema = resolve(self.specification, property);
        let Some(kind) = schema.get("type").and_then(Value::as_str) else {
            self.accepts(json!(1));
            return;
        };
        self.expect(None, !required);
        let nullable = property.get("nullable") == Some(&json!(true));
        self.expect(Some(Value::Null), nullable);
        assert!(!(required && nullable), "{}{}", self.body_type.name, self.path);
        for value in [
            json!("x"),
            json!(1),
            json!(-1),
            json!(1.5),
            json!(1e30),
            json!(true),
            json!([]),
            json!({}),
        ] {
            let fits = match kind {
                "string" => value.is_string(),
                "integer" => value.is_u64(),
                "boolean" => value.is_boolean(),
                "array" => value.is_array(),
                _ => value.is_object(),
            };
            if !fits {
                self.rejects(value);
            }
        }
        self.limits(schema);
        if schema.get("properties").is_some() {
            self.object(schema);
        }
        if let Some(items) = schema.get("items") {
            self.list(resolve(self.specification, items));
        }
    }

    fn limits(&self, schema: &Value) {
        let number = |key: &str| schema.get(key).and_then(Value::as_u64);
        if schema["type"] == "integer" {
            let (min, max) = (number("minimum").unwrap(), number("maximum").unwrap());
            self.accepts(min.into());
            self.accepts(max.into());
            if let Some(below) = min.checked_sub(1) {
                self.rejects(below.into());
            }
            if let Some(above) = max.checked_add(1) {
                self.rejects(above.into());
            }
        }
        if let Some(values) = schema.get("enum") {
            for value in values.as_array().unwrap() {
                self.accepts(value.clone());
            }
            self.rejects(json!({}));
            self.rejects(json!("other"));
            self.rejects(json!({values[0].to_string(): null}));
            self.rejects(json!(true));
        }
        if number("maxLength") == Some(0) {
            self.accepts(json!(""));
            self.rejects(json!("x"));
        }
        if schema["type"] == "object" && schema["additionalProperties"].is_object() {
            self.accepts(json!({}));
            self.accepts(json!({"x": "y", "": ""}));
            for invalid in [json!(null), json!(1), json!([]), json!({})] {
                self.rejects(json!({"x": invalid}));
            }
        }
    }

    /// Probes each property of the objects in the list at the path.
    fn list(&self, items: &Value) {
        self.accepts(json!([]));
        for invalid in [json!(null), json!(1), json!("x"), json!([])] {
            self.rejects(json!([items["example"], invalid]));
        }
        let probe = Probe {
            body: self.with(Some(json!([items["example"], items["example"]]))),
            path: format!("{}/1", self.path),
            ..*self
        };
        probe.properties(items, &probe.body);
    }

    /// Probes each property of the object at the path.
    fn object(&self, schema: &Value) {
        let example = &schema["example"];
        let body = match self.path.as_str() {
            "" => example.clone(),
            _ => self.with(Some(example.clone())),
        };
        self.properties(schema, &body);
    }

    /// Probes each property of the object at the path in `body`.
    fn properties(&self, schema: &Value, body: &Value) {
        let required = schema.get("required").and_then(Value::as_array);
        for (name, property) in schema["properties"].as_object().unwrap() {
            let probe = Probe {
                body: body.clone(),
                path: format!("{}/{name}", self.path),
                ..*self
            };
            probe.property(
                property,
                required.is_some_and(|required| required.contains(&json!(name))),
            );
        }
    }
}

#[test]
fn types_match_specification() {
    let specification = specification();
    for body_type in &body_types() {
        let schema = &specification["components"]["schemas"][body_type.name];
        let probe = Probe {
            specification: &specification,
            body_type,
            body: Value::Null,
            path: String::new(),
        };
        (body_type.read)(&schema["example"]).unwrap();
        probe.object(schema);
        for invalid in [json!(null), json!([]), json!("x"), json!(1)] {
            assert!(
                (body_type.read)(&invalid).is_err(),
                "{}: {invalid}",
                body_type.name
            );
        }
    }
}

fn assert_same_names(specification: &Value, fields: &[Field], schema: &Value, path: &str) {
    let properties = schema["properties"].as_object().unwrap();
    let fields_of_type: BTreeSet<&str> = fields.iter().map(|field| field.name).collect();
    let fields_of_file: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
    assert_eq!(fields_of_type, fields_of_file, "{path}");
    for field in fields {
        let property = resolve(specification, &properties[field.name]);
        if let Rule::Object(fields) = field.rule {
            assert_same_names(specification, fields, property, field.name);
        }
        if let Rule::List(fields) = field.rule {
            let items = resolve(specification, &property["items"]);
            assert_same_names(specification, fields, items, field.name);
        }
        if let Rule::Choice(words) = field.rule {
            assert_eq!(property["enum"], json!(words), "{path}");
        }
    }
}

#[test]
fn specification_has_same_fields() {
    let specification = specification();
    for body_type in &body_types() {
        let schema = &specification["components"]["schemas"][body_type.name];
        assert_same_names(&specification, body_type.fields, schema, body_type.name);
    }
}

#[test]
fn shown_defaults_match_specification() {
    let specification = specification();
    let properties = |name: &str| specification["components"]["schemas"][name]["properties"].clone();
    assert_eq!(
        properties("BootSource")["boot_args"]["default"],
        DEFAULT_BOOT_ARGS
    );
    let drive: Drive = read(br#"{"drive_id": "a", "is_root_device": false, "path_on_host": "/b"}"#).unwrap();
    let drive = serde_json::to_value(Drive::from_config(&drive.into_config())).unwrap();
    for name in ["is_read_only", "cache_type", "io_engine"] {
        assert_eq!(drive[name], properties("Drive")[name]["default"], "{name}");
    }
}

/// Reads `minimal`, and the same with the default of the specification in each other field of `T`.
fn bodies<T: Schema>(minimal: &Value) -> [T; 2] {
    let specification = specification();
    let properties = &specification["components"]["schemas"][T::NAME]["properties"];
    let mut full = minimal.clone();
    for (name, property) in properties.as_object().unwrap() {
        if let Some(default) = property.get("default") {
            full[name] = default.clone();
        }
    }
    assert_ne!(full, *minimal);
    [minimal, &full].map(|body| read(body.to_string().as_bytes()).unwrap())
}

#[test]
fn absent_fields_have_specified_defaults() {
    let minimal = json!({"drive_id": "a", "is_root_device": false, "path_on_host": "/b"});
    let [left, right] = bodies::<Drive>(&minimal).map(|drive| Drive::from_config(&drive.into_config()));
    assert_eq!(left, right);
    let minimal = json!({"vcpu_count": 1, "mem_size_mib": 1});
    let [left, right] = bodies::<MachineConfiguration>(&minimal).map(MachineConfiguration::into_config);
    assert_eq!(left, right);
    let minimal = json!({"snapshot_path": "s", "mem_file_path": "m"});
    let [left, right] = bodies::<SnapshotCreate>(&minimal).map(SnapshotCreate::into_params);
    assert_eq!(left, right);
    let minimal = json!({"snapshot_path": "s", "mem_file_path": "m", "record_working_set": {"path": "w"}});
    let [left, mut right] = bodies::<SnapshotLoad>(&minimal);
    let [_, record] = bodies::<RecordWorkingSet>(&minimal["record_working_set"]);
    right.record_working_set = Some(record);
    assert_eq!(left.into_params(), right.into_params());
    let [left, right] = bodies::<TokenBucket>(&json!({"size": 1, "refill_time": 1}));
    let limits = |bucket| {
        RateLimiter::limits(Some(RateLimiter {
            bandwidth: Some(bucket),
            ops: None,
        }))
    };
    assert_eq!(limits(left), limits(right));
}

#[test]
fn unknown_keys_are_listed_up_to_limit() {
    let names = |value: Value| field::check(Drive::FIELDS, &value).unwrap();
    assert_eq!(names(json!({"drive_id": "a", "socket": null})), None);
    assert_eq!(
        names(json!({"a": 1, "rate_limiter": {"x\n": 2, "ops": {"y": 3}}})).unwrap(),
        r#""a", "rate_limiter.ops.y", "rate_limiter.x\n""#
    );
    let many: serde_json::Map<_, _> = (0..1000)
        .map(|number| (format!("{number:0200}"), json!(1)))
        .collect();
    let text = names(many.into()).unwrap();
    assert!(text.ends_with(" and 992 more") && text.len() < 1000, "{text}");
}

#[test]
fn rejections_name_field_and_reason() {
    let rejected = |text: &str| read::<Drive>(text.as_bytes()).unwrap_err().to_string();
    assert_eq!(
        rejected(r#"{"drive_id": "a", "socket": "/s"}"#),
        "The field socket cannot be \"/s\": vhost-user drives are not part of mayfly; name a file in path_on_host."
    );
    assert_eq!(
        rejected(r#"{"drive_id": "a"}"#),
        "An error occurred when deserializing the json body of a request: missing field `is_root_device` at line 1 \
         column 17."
    );
    assert!(rejected("{").contains("EOF while parsing"));
    let machine = read::<MachineConfiguration>(br#"{"vcpu_count": 33, "mem_size_mib": 1}"#);
    assert_eq!(
        machine.unwrap_err().to_string(),
        "Invalid vcpu_count: 33 is not in the range from 1 to 32."
    );
}

#[test]
fn log_level_is_case_insensitive() {
    for (text, level) in [
        ("warn", log::LevelFilter::Warn),
        ("WARNING", log::LevelFilter::Warn),
        ("tRaCe", log::LevelFilter::Trace),
        ("off", log::LevelFilter::Off),
    ] {
        let logger: Logger = read(format!(r#"{{"level": "{text}"}}"#).as_bytes()).unwrap();
        assert_eq!(logger.level, Some(level));
    }
}

#[test]
fn zero_bucket_removes_limit() {
    let limiter: RateLimiter =
        serde_json::from_str(r#"{"bandwidth": {"size": 0, "refill_time": 5}, "ops": null}"#).unwrap();
    assert_eq!(RateLimiter::limits(Some(limiter)).bandwidth, None);
    let changes = RateLimiter::changes(Some(limiter));
    assert_eq!(changes.bandwidth.map(|bucket| bucket.size), Some(0));
    assert_eq!(changes.operations, None);
    assert_eq!(RateLimiter::from_limits(changes), None);
}

#[test]
fn memory_beyond_byte_range_is_rejected() {
    for mib in ["17592186044416", "18446744073709551615", "1e19"] {
        let text = format!(r#"{{"vcpu_count": 1, "mem_size_mib": {mib}}}"#);
        assert!(read::<MachineConfiguration>(text.as_bytes()).is_err(), "{mib}");
    }
}
