//! Comparison of the routes with the specification.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::ROUTES;
use crate::testing::{Fixture, resolve, specification};

fn body(operation: &Value) -> Option<String> {
    let content = &operation.get("requestBody")?["content"]["application/json"];
    let name = content["schema"]["$ref"].as_str().unwrap();
    Some(name.rsplit_once('/').unwrap().1.to_owned())
}

#[test]
fn specification_has_same_routes() {
    let specification = specification();
    let mut specified = BTreeSet::new();
    for (path, item) in specification["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if method != "parameters" {
                specified.insert((path.clone(), method.to_uppercase(), body(operation)));
            }
        }
    }
    let table: BTreeSet<_> = ROUTES
        .iter()
        .map(|route| {
            let method = route.method.name().to_owned();
            (route.path.to_owned(), method, route.body.map(str::to_owned))
        })
        .collect();
    assert_eq!(table.len(), ROUTES.len());
    assert_eq!(table, specified);
}

#[test]
fn specification_has_same_statuses() {
    let specification = specification();
    for route in &ROUTES {
        let operation = &specification["paths"][route.path][route.method.name().to_lowercase()];
        let responses = operation["responses"].as_object().unwrap();
        let statuses: Vec<&str> = responses.keys().map(String::as_str).collect();
        let expected: &[&str] = match route.method.name() {
            _ if route.path == "/vm/debugger" => &["101", "400"],
            "GET" => &["200", "400"],
            "DELETE" => &["400"],
            _ => &["204", "400"],
        };
        assert_eq!(statuses, expected, "{} {}", route.method, route.path);
    }
}

/// Checks `value` against `schema`, as far as responses require.
fn check(specification: &Value, schema: &Value, value: &Value, place: &str) {
    if value.is_null() {
        let nullable = schema
            .get("nullable")
            .or_else(|| resolve(specification, schema).get("nullable"));
        assert_eq!(nullable, Some(&json!(true)), "{place} is null");
        return;
    }
    let schema = resolve(specification, schema);
    match (schema["type"].as_str().unwrap(), value) {
        ("string", Value::String(_)) | ("boolean", Value::Bool(_)) | ("integer", Value::Number(_)) => {}
        ("array", Value::Array(list)) => {
            for element in list {
                check(specification, &schema["items"], element, place);
            }
        }
        ("object", Value::Object(object)) => {
            for (name, value) in object {
                let property = schema["properties"].get(name);
                let property = property.unwrap_or_else(|| panic!("{place} has {name}"));
                check(specification, property, value, &format!("{place}.{name}"));
            }
            let required = schema.get("required").and_then(Value::as_array);
            for name in required.into_iter().flatten() {
                assert!(
                    object.contains_key(name.as_str().unwrap()),
                    "{place} has no {name}"
                );
            }
        }
        (kind, value) => panic!("{place} is {value}, and no {kind}"),
    }
    if let Some(values) = schema.get("enum") {
        assert!(values.as_array().unwrap().contains(value), "{place} is {value}");
    }
}

#[test]
fn responses_match_specification() {
    let specification = specification();
    let mut fixture = Fixture::new();
    fixture.expect_no_content("PUT", "/boot-source", r#"{"kernel_image_path": "@/kernel"}"#);
    let limiter = r#"{"ops": {"size": 9, "refill_time": 8, "one_time_burst": 7}}"#;
    let drive = format!(
        r#"{{"drive_id": "a", "is_root_device": true, "path_on_host": "@/disk", "rate_limiter": {limiter}}}"#
    );
    fixture.expect_no_content("PUT", "/drives/a", &drive);
    for route in ROUTES.iter().filter(|route| route.method.name() == "GET") {
        let content = &specification["paths"][route.path]["get"]["responses"]["200"]["content"];
        if let Some(json) = content.get("application/json") {
            check(
                &specification,
                &json["schema"],
                &fixture.get(route.path),
                route.path,
            );
        }
    }
    let fault = fixture.request("GET", "/foo", b"");
    let fault: Value = serde_json::from_slice(fault.body()).unwrap();
    check(
        &specification,
        &specification["components"]["schemas"]["Fault"],
        &fault,
        "fault",
    );
}
