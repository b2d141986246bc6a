//! Bodies with valid and invalid values of each field.

use super::case::Request;

/// Values of wrong types and out of range, for any field.
const ANY: [&str; 11] = [
    "null",
    "\"\"",
    "\"x\"",
    "0",
    "-1",
    "1.5",
    "4294967296",
    "18446744073709551615",
    "true",
    "[]",
    "{}",
];

/// A field of a body. The first value is valid; the others need not be.
pub type Field = (&'static str, &'static [&'static str]);

/// A request whose body has fields.
pub struct Endpoint {
    /// Method and path.
    pub request: &'static str,
    /// Fields that every body has.
    pub required: &'static [Field],
    /// Other fields.
    pub optional: &'static [Field],
}

fn body<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let fields = fields
        .into_iter()
        .map(|(name, value)| format!("\"{name}\":{value}"));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

/// Bodies that are malformed, or no object.
const MALFORMED: [&str; 9] = ["{}", "null", "[]", "\"\"", "1", "{", "{}x", "", "\u{fffd}"];

impl Endpoint {
    /// Returns bodies with all fields that are required and one value of another: a listed one, or one of `any`.
    fn bodies(&self, any: &[&str]) -> Vec<String> {
        let base: Vec<(&str, &str)> = self
            .required
            .iter()
            .map(|(name, values)| (*name, values[0]))
            .collect();
        let mut bodies = vec![body(base.clone())];
        for (name, values) in self.required {
            for value in values.iter().chain(any) {
                let replace = |(other, old)| (other, if other == *name { *value } else { old });
                bodies.push(body(base.iter().copied().map(replace)));
            }
        }
        for (name, values) in self.optional {
            for value in values.iter().chain(any) {
                bodies.push(body(base.iter().copied().chain([(*name, *value)])));
            }
        }
        bodies
    }

    /// Returns bodies whose set of keys is wrong.
    fn wrong_keys(&self) -> Vec<String> {
        let base = self.required.iter().map(|(name, values)| (*name, values[0]));
        let all = self.optional.iter().map(|(name, values)| (*name, values[0]));
        let mut bodies = vec![
            body(base.clone().chain(all)),
            body(base.clone().chain([("unknown_key", "1")])),
            body(base.clone().chain(base.clone().take(1))),
        ];
        for (name, _) in self.required {
            bodies.push(body(base.clone().filter(|(other, _)| other != name)));
        }
        bodies
    }

    fn to_requests(&self, bodies: Vec<String>) -> Vec<Request> {
        let (method, path) = self.request.split_once(' ').unwrap();
        let mut unique: Vec<String> = Vec::new();
        for body in bodies {
            if !unique.contains(&body) {
                unique.push(body);
            }
        }
        let requests = unique.iter().map(|body| Request::new(method, path, Some(body)));
        requests.collect()
    }

    /// Returns a request for each listed value.
    #[allow(dead_code, reason = "only the emulated host, which is slow, uses it alone")]
    pub fn listed_requests(&self) -> Vec<Request> {
        self.to_requests(self.bodies(&[]))
    }

    /// Returns a request for each listed value, values for any field, wrong keys, malformed bodies, and one without body.
    pub fn requests(&self) -> Vec<Request> {
        let mut bodies = self.bodies(&ANY);
        bodies.extend(self.wrong_keys());
        bodies.extend(MALFORMED.map(str::to_owned));
        let mut requests = self.to_requests(bodies);
        let (method, path) = self.request.split_once(' ').unwrap();
        requests.push(Request::new(method, path, None));
        requests
    }
}
