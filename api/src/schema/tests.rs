//! The types against the specification: every field of it is asked with values on both sides of what it says.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    Action, BootSource, DEFAULT_BOOT_ARGS, Drive, DriveUpdate, Error, Field, Logger, MachineConfiguration,
    MachineConfigurationUpdate, Metrics, NetworkInterface, NetworkInterfaceUpdate, RateLimiter, Rule, Schema,
    Serial, SnapshotCreate, SnapshotLoad, VmUpdate, Vsock, field, read,
};
use crate::testing::{resolve, specification};

struct Shape {
    name: &'static str,
    fields: &'static [Field],
    read: fn(&Value) -> Result<(), Error>,
}

fn shape<T: Schema>() -> Shape {
    Shape {
        name: T::NAME,
        fields: T::FIELDS,
        read: |value| read::<T>(value.to_string().as_bytes()).map(drop),
    }
}

fn shapes() -> [Shape; 15] {
    [
        shape::<Action>(),
        shape::<BootSource>(),
        shape::<Drive>(),
        shape::<DriveUpdate>(),
        shape::<Logger>(),
        shape::<MachineConfiguration>(),
        shape::<MachineConfigurationUpdate>(),
        shape::<Metrics>(),
        shape::<NetworkInterface>(),
        shape::<NetworkInterfaceUpdate>(),
        shape::<Serial>(),
        shape::<SnapshotCreate>(),
        shape::<SnapshotLoad>(),
        shape::<VmUpdate>(),
        shape::<Vsock>(),
    ]
}

/// A body that is right, in which one value is put at a place.
struct Probe<'a> {
    specification: &'a Value,
    shape: &'a Shape,
    body: Value,
    place: String,
}

impl Probe<'_> {
    /// The body with `value` at the place, or with nothing there.
    fn with(&self, value: Option<Value>) -> Value {
        let mut body = self.body.clone();
        let (parent, name) = self.place.rsplit_once('/').unwrap();
        let object = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => object.insert(name.to_owned(), value),
            None => object.remove(name),
        };
        body
    }

    fn expect(&self, value: Option<Value>, accepted: bool) {
        let body = self.with(value);
        let result = (self.shape.read)(&body);
        assert_eq!(
            result.is_ok(),
            accepted,
            "{}{}: {body}: {result:?}",
            self.shape.name,
            self.place
        );
    }

    fn takes(&self, value: Value) {
        self.expect(Some(value), true);
    }

    fn refuses(&self, value: Value) {
        self.expect(Some(value), false);
    }

    /// Asks for all that `property` says.
    fn property(&self, property: &Value, required: bool) {
        let schema = resolve(self.specification, property);
        let Some(kind) = schema.get("type").and_then(Value::as_str) else {
            self.takes(json!(1));
            return;
        };
        self.expect(None, !required);
        let nullable = property.get("nullable") == Some(&json!(true));
        self.expect(Some(Value::Null), nullable);
        assert!(!(required && nullable), "{}{}", self.shape.name, self.place);
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
                self.refuses(value);
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
            let (least, greatest) = (number("minimum").unwrap(), number("maximum").unwrap());
            self.takes(least.into());
            self.takes(greatest.into());
            if let Some(below) = least.checked_sub(1) {
                self.refuses(below.into());
            }
            if let Some(above) = greatest.checked_add(1) {
                self.refuses(above.into());
            }
        }
        if let Some(values) = schema.get("enum") {
            for value in values.as_array().unwrap() {
                self.takes(value.clone());
            }
            self.refuses(json!({}));
            self.refuses(json!("other"));
            self.refuses(json!({values[0].to_string(): null}));
            self.refuses(json!(true));
        }
        if number("maxLength") == Some(0) {
            self.takes(json!(""));
            self.refuses(json!("x"));
        }
        if number("maxProperties") == Some(0) {
            self.takes(json!({}));
            self.refuses(json!({"x": null}));
        }
    }

    /// Asks for each property of the objects in the list that is at the place.
    fn list(&self, items: &Value) {
        self.takes(json!([]));
        for wrong in [json!(null), json!(1), json!("x"), json!([])] {
            self.refuses(json!([items["example"], wrong]));
        }
        let probe = Probe {
            body: self.with(Some(json!([items["example"], items["example"]]))),
            place: format!("{}/1", self.place),
            ..*self
        };
        probe.properties(items, &probe.body);
    }

    /// Asks for each property of the object that is at the place.
    fn object(&self, schema: &Value) {
        let example = &schema["example"];
        let body = match self.place.as_str() {
            "" => example.clone(),
            _ => self.with(Some(example.clone())),
        };
        self.properties(schema, &body);
    }

    /// Asks for each property of the object that is at the place in `body`.
    fn properties(&self, schema: &Value, body: &Value) {
        let required = schema.get("required").and_then(Value::as_array);
        for (name, property) in schema["properties"].as_object().unwrap() {
            let probe = Probe {
                body: body.clone(),
                place: format!("{}/{name}", self.place),
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
fn the_types_take_what_the_specification_says() {
    let specification = specification();
    for shape in &shapes() {
        let schema = &specification["components"]["schemas"][shape.name];
        let probe = Probe {
            specification: &specification,
            shape,
            body: Value::Null,
            place: String::new(),
        };
        (shape.read)(&schema["example"]).unwrap();
        probe.object(schema);
        for wrong in [json!(null), json!([]), json!("x"), json!(1)] {
            assert!((shape.read)(&wrong).is_err(), "{}: {wrong}", shape.name);
        }
    }
}

fn same_names(specification: &Value, fields: &[Field], schema: &Value, place: &str) {
    let properties = schema["properties"].as_object().unwrap();
    let known: BTreeSet<&str> = fields.iter().map(|field| field.name).collect();
    let written: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
    assert_eq!(known, written, "{place}");
    for field in fields {
        let property = resolve(specification, &properties[field.name]);
        if let Rule::Object(fields) = field.rule {
            same_names(specification, fields, property, field.name);
        }
        if let Rule::List(fields) = field.rule {
            let items = resolve(specification, &property["items"]);
            same_names(specification, fields, items, field.name);
        }
        if let Rule::Choice(words) = field.rule {
            assert_eq!(property["enum"], json!(words), "{place}");
        }
    }
}

#[test]
fn the_specification_has_every_field_and_no_other() {
    let specification = specification();
    for shape in &shapes() {
        let schema = &specification["components"]["schemas"][shape.name];
        same_names(&specification, shape.fields, schema, shape.name);
    }
}

#[test]
fn defaults_are_those_of_the_specification() {
    let specification = specification();
    let properties = |name: &str| specification["components"]["schemas"][name]["properties"].clone();
    assert_eq!(
        properties("BootSource")["boot_args"]["default"],
        DEFAULT_BOOT_ARGS
    );
    let drive: Drive = read(br#"{"drive_id": "a", "is_root_device": false, "path_on_host": "/b"}"#).unwrap();
    let drive = serde_json::to_value(Drive::of(&drive.config())).unwrap();
    for name in ["is_read_only", "cache_type", "io_engine"] {
        assert_eq!(drive[name], properties("Drive")[name]["default"], "{name}");
    }
}

#[test]
fn unknown_keys_are_named_and_no_more_than_a_few_of_them() {
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
fn what_is_refused_is_named() {
    let refused = |text: &str| read::<Drive>(text.as_bytes()).unwrap_err().to_string();
    assert_eq!(
        refused(r#"{"drive_id": "a", "socket": "/s"}"#),
        "The field socket cannot be \"/s\": vhost-user drives are not part of mayfly; name a file in path_on_host."
    );
    assert_eq!(
        refused(r#"{"drive_id": "a"}"#),
        "An error occurred when deserializing the json body of a request: missing field `is_root_device` at line 1 \
         column 17."
    );
    assert!(refused("{").contains("EOF while parsing"));
    let machine = read::<MachineConfiguration>(br#"{"vcpu_count": 33, "mem_size_mib": 1}"#);
    assert_eq!(
        machine.unwrap_err().to_string(),
        "Invalid vcpu_count: 33 is not in the range from 1 to 32."
    );
}

#[test]
fn levels_are_read_in_any_case() {
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
fn a_bucket_of_nothing_is_no_limit_but_a_change() {
    let limiter: RateLimiter =
        serde_json::from_str(r#"{"bandwidth": {"size": 0, "refill_time": 5}, "ops": null}"#).unwrap();
    assert_eq!(RateLimiter::limits(Some(limiter)).bandwidth, None);
    let changes = RateLimiter::changes(Some(limiter));
    assert_eq!(changes.bandwidth.map(|bucket| bucket.size), Some(0));
    assert_eq!(changes.operations, None);
    assert_eq!(RateLimiter::of(changes), None);
}

#[test]
fn more_memory_than_bytes_can_count_is_refused() {
    for mib in ["17592186044416", "18446744073709551615", "1e19"] {
        let text = format!(r#"{{"vcpu_count": 1, "mem_size_mib": {mib}}}"#);
        assert!(read::<MachineConfiguration>(text.as_bytes()).is_err(), "{mib}");
    }
}
