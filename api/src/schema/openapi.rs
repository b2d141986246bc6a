//! Generator of `components/schemas` in `resources/openapi.yaml`, and the test that compares the two.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::field::{Off, Rule};
use super::{
    Action, BootSource, Debugger, DeviceStatus, Drive, DriveOverride, DriveUpdate, InstanceInfo, Logger,
    MachineConfiguration, MachineConfigurationUpdate, MemBackend, Metrics, NetworkInterface,
    NetworkInterfaceUpdate, NetworkOverride, RateLimiter, RecordWorkingSet, ScaleToZero, ScaleToZeroAction,
    ScaleToZeroInfo, Serial, SnapshotCreate, SnapshotLoad, TokenBucket, UnclaimedAccess, VcpuRegisters,
    VcpuStatus, Version, VmConfiguration, VmRegisters, VmStatus, VmUpdate, Vsock,
};

/// Type of a value in the specification.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    Boolean,
    /// An integer up to this maximum.
    Integer(u64),
    String,
    /// A string with one of these words.
    Words(&'static [&'static str]),
    /// The schema with this name.
    Reference(&'static str),
    /// Null, or another shape.
    Nullable(&'static Shape),
    /// Array of values of this shape.
    List(&'static Shape),
    /// Object with any keys and strings as values.
    Texts,
    /// Always null.
    Nothing,
    /// Always an empty array.
    EmptyList,
}

/// Type with a shape in the specification.
pub(super) trait ValueType {
    const SHAPE: Shape;
}

macro_rules! shapes {
    ($($name:ty => $shape:expr,)+) => {
        $(impl ValueType for $name { const SHAPE: Shape = $shape; })+
    };
}

shapes! {
    bool => Shape::Boolean,
    u8 => Shape::Integer(u8::MAX as u64),
    u16 => Shape::Integer(u16::MAX as u64),
    u32 => Shape::Integer(u32::MAX as u64),
    u64 => Shape::Integer(u64::MAX),
    String => Shape::String,
    &str => Shape::String,
    PathBuf => Shape::String,
    &Path => Shape::String,
    BTreeMap<String, String> => Shape::Texts,
    () => Shape::Nothing,
    [(); 0] => Shape::EmptyList,
}

impl<T: ValueType> ValueType for Option<T> {
    const SHAPE: Shape = Shape::Nullable(&T::SHAPE);
}

impl<T: ValueType> ValueType for Vec<T> {
    const SHAPE: Shape = Shape::List(&T::SHAPE);
}

/// Type that `schema!` declares.
pub(super) trait Described {
    fn description() -> Description;
}

/// Description of a type.
pub(super) struct Description {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) is_response: bool,
    /// YAML of a valid object; empty if there is none.
    pub(super) example: &'static str,
    pub(super) properties: Vec<Property>,
}

/// Description of a field.
#[derive(Default)]
pub(super) struct Property {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    /// None for a field without a Rust field.
    pub(super) shape: Option<Shape>,
    pub(super) rule: Option<Rule>,
    pub(super) default: Option<Value>,
    /// Schema in place of the shape.
    pub(super) reference: Option<&'static str>,
    pub(super) max_length: Option<usize>,
    pub(super) pattern: Option<&'static str>,
}

impl Description {
    fn yaml(&self) -> String {
        let mut yaml = format!("    {}:\n", self.name);
        let mut line = |text: String| {
            let _ = writeln!(yaml, "      {text}");
        };
        line(format!("description: {}", quote(self.about.trim())));
        line("type: object".into());
        // Unknown keys of requests are ignored.
        line(format!("additionalProperties: {}", !self.is_response));
        let required = self.properties.iter().filter(|property| {
            self.is_response || !matches!(property.shape, None | Some(Shape::Nullable(_)))
        });
        let required: Vec<&str> = required.map(|property| property.name).collect();
        if !required.is_empty() {
            line(format!("required: [{}]", required.join(", ")));
        }
        line("properties:".into());
        for property in &self.properties {
            line(format!("  {}: {{{}}}", property.name, property.yaml()));
        }
        if !self.example.is_empty() {
            line(format!("example: {}", self.example));
        }
        yaml
    }
}

impl Property {
    fn yaml(&self) -> String {
        let mut parts = Vec::new();
        if let Some(name) = self.reference {
            parts.push(reference(name));
        } else if let Some(shape) = self.shape {
            parts.extend(shape.yaml());
        }
        match self.rule {
            Some(Rule::Range(min, max)) => {
                parts.retain(|part| !part.starts_with("minimum") && !part.starts_with("maximum"));
                parts.push(format!("minimum: {min}, maximum: {max}"));
            }
            Some(Rule::Unsupported(off, _)) => {
                parts.retain(|part| !part.starts_with("enum"));
                if self.shape.is_none() {
                    parts.push(format!("type: {}, nullable: true", off.type_name()));
                }
                parts.push(off.constraint());
            }
            _ => {}
        }
        if let Some(length) = self.max_length {
            parts.push(format!("maxLength: {length}"));
        }
        if let Some(pattern) = self.pattern {
            parts.push(format!("pattern: {}", quote(pattern)));
        }
        match &self.default {
            Some(Value::String(text)) => parts.push(format!("default: {}", quote(text))),
            Some(default) => parts.push(format!("default: {default}")),
            None => {}
        }
        parts.push(format!("description: {}", quote(self.about.trim())));
        parts.join(", ")
    }
}

impl Shape {
    fn yaml(self) -> Vec<String> {
        match self {
            Self::Boolean => vec!["type: boolean".into()],
            Self::Integer(max) => vec!["type: integer".into(), format!("minimum: 0, maximum: {max}")],
            Self::String => vec!["type: string".into()],
            Self::Words(words) => vec!["type: string".into(), enumeration(words)],
            Self::Reference(name) => vec![reference(name)],
            Self::Nullable(Self::Nothing) => Self::Nothing.yaml(),
            Self::Nullable(shape) => [shape.yaml(), vec!["nullable: true".into()]].concat(),
            Self::List(Self::Reference(name)) => {
                vec![format!(
                    "type: array, items: {{$ref: '#/components/schemas/{name}'}}"
                )]
            }
            Self::List(shape) => vec![format!("type: array, items: {{{}}}", shape.yaml().join(", "))],
            Self::Texts => vec!["type: object, additionalProperties: {type: string}".into()],
            Self::Nothing => vec![reference("Nothing")],
            Self::EmptyList => vec!["type: array, maxItems: 0, items: {type: object}".into()],
        }
    }
}

impl Off {
    fn type_name(self) -> &'static str {
        match self {
            Self::Null => "object",
            Self::False => "boolean",
            Self::Zero => "integer",
            Self::Text(_) => "string",
        }
    }

    fn constraint(self) -> String {
        match self {
            Self::Null => "enum: [null]".into(),
            Self::False => "enum: [false]".into(),
            Self::Zero => "minimum: 0, maximum: 0".into(),
            Self::Text([""]) => "maxLength: 0".into(),
            Self::Text(words) => enumeration(words),
        }
    }
}

/// Returns a reference that permits other keys beside it.
fn reference(name: &str) -> String {
    format!("allOf: [{{$ref: '#/components/schemas/{name}'}}]")
}

fn enumeration(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
    format!("enum: [{}]", words.join(", "))
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Schemas without a Rust type.
const OTHERS: &str = "    Id:
      description: 'Identifier of a device.'
      type: string
      minLength: 1
      pattern: '^[A-Za-z0-9_.:-]+$'
    Fault:
      description: 'Rejection of a request.'
      type: object
      required: [fault_message]
      properties:
        fault_message: {type: string, description: 'Reason.'}
      example: {fault_message: The requested operation is not supported after starting the microVM.}
    Nothing:
      description: 'Null, where Firecracker may have an object.'
      type: object
      nullable: true
      enum: [null]
";

fn all() -> [Description; 34] {
    [
        InstanceInfo::description(),
        Version::description(),
        VmConfiguration::description(),
        VmStatus::description(),
        VcpuStatus::description(),
        DeviceStatus::description(),
        UnclaimedAccess::description(),
        VmRegisters::description(),
        VcpuRegisters::description(),
        MachineConfiguration::description(),
        MachineConfigurationUpdate::description(),
        BootSource::description(),
        Drive::description(),
        DriveUpdate::description(),
        NetworkInterface::description(),
        NetworkInterfaceUpdate::description(),
        RateLimiter::description(),
        TokenBucket::description(),
        Vsock::description(),
        Logger::description(),
        Metrics::description(),
        Serial::description(),
        Action::description(),
        VmUpdate::description(),
        Debugger::description(),
        ScaleToZeroInfo::description(),
        ScaleToZero::description(),
        ScaleToZeroAction::description(),
        SnapshotCreate::description(),
        SnapshotLoad::description(),
        RecordWorkingSet::description(),
        MemBackend::description(),
        NetworkOverride::description(),
        DriveOverride::description(),
    ]
}

/// Line before the generated section, which extends to the end of the file.
const START: &str = "\n  schemas:\n";

#[test]
fn specification_is_generated_from_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/openapi.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (rest, present) = text.split_once(START).unwrap();
    let types: String = all().iter().map(Description::yaml).collect();
    let generated = format!("{OTHERS}{types}");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, format!("{rest}{START}{generated}")).unwrap();
        return;
    }
    for (line, (present, generated)) in present.lines().zip(generated.lines()).enumerate() {
        let line = rest.lines().count() + 2 + line;
        assert_eq!(
            present, generated,
            "line {line} of resources/openapi.yaml differs from the type; to update the file: \
             UPDATE_OPENAPI=1 cargo test -p api specification"
        );
    }
    assert_eq!(present.len(), generated.len());
}
