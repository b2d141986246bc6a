//! Macros that declare a body or a choice once; everything else about it is generated.
//!
//! A declaration of [`schema!`] holds each field of a JSON object once:
//!
//! ```text
//! schema! {
//!     /// Description of the type.
//!     #[derive(Deserialize, Serialize)]
//!     body Drive {
//!         /// Description of the field.
//!         is_read_only: Option<bool> = false => Rule::Any, update Option<bool>;
//!     }
//!     unsupported {
//!         /// Description of a field without a Rust field.
//!         socket => Rule::Unsupported(Off::Null, "reason");
//!     }
//!     example "{is_read_only: true}";
//!     /// Description of the type for `PATCH`.
//!     update DriveUpdate;
//!     example "{is_read_only: true}";
//! }
//! ```
//!
//! A field has a type and, each optional, the default of an absent value, a rule in place of the rule of the type, and
//! its type in the update. It is required unless the type is an `Option`. Attributes before the field: `#[serde(...)]`,
//! `#[schema(Id)]` for a named schema in place of the type, `#[max_length(n)]` and `#[pattern("regex")]`. A `response`
//! in place of `body` is never read.
//!
//! The macro generates the structs, their `Schema::NAME` and `Schema::FIELDS`, and in tests the description for
//! `resources/openapi.yaml`. The release binary holds no descriptions but those in that file.

/// Declares the object of a request or response body, see the module documentation.
macro_rules! schema {
    (@split
        $kind:ident $name:ident $life:tt $about:tt $derive:tt $fields:tt $absent:tt $example:literal
        [$($update:tt)*]
    ) => {
        schema! { @struct $about $derive $name $life $fields }
        schema! { @rules $kind $name $fields $absent }
        #[cfg(test)]
        schema! { @shape $kind $name $life }
        #[cfg(test)]
        schema! { @describe $kind $name $life $about $fields $absent $example }
        schema! { @update $fields $absent $($update)* }
    };

    (@struct [$($about:literal)+] [$($derive:ident)+] $name:ident [$($life:lifetime)?] {
        $( {
            [$($doc:literal)+] [$(#[$serde:meta])?] $meta:tt $field:ident [$($key:literal)?] [$type:ty]
            $default:tt $rule:tt $patch:tt
        } )+
    }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Eq, $($derive),+)]
        pub struct $name $(<$life>)? {
            $(
                $(#[doc = $doc])+
                $(#[$serde])?
                $(#[serde(rename = $key)])?
                pub $field: $type,
            )+
        }
    };

    (@rules response $name:ident $fields:tt $absent:tt) => {};
    (@rules body $name:ident {
        $( {
            $doc:tt $serde:tt $meta:tt $field:ident [] [$type:ty] $default:tt [$($rule:expr)?] $patch:tt
        } )+
    } {
        $( { $absent_doc:tt $absent:ident $absent_default:tt [$absent_rule:expr] $absent_update:tt } )*
    }) => {
        impl $crate::schema::field::Schema for $name {
            const NAME: &'static str = stringify!($name);
            const FIELDS: &'static [$crate::schema::field::Field] = &[
                $(
                    $crate::schema::field::Field {
                        name: stringify!($field),
                        rule: schema!(@rule [$type] $($rule)?),
                    },
                )+
                $(
                    $crate::schema::field::Field {
                        name: stringify!($absent),
                        rule: $absent_rule,
                    },
                )*
            ];
        }

        impl $crate::schema::field::FieldType for $name {
            const RULE: $crate::schema::field::Rule =
                $crate::schema::field::Rule::Object(<Self as $crate::schema::field::Schema>::FIELDS);
        }

        #[cfg(test)]
        impl $crate::schema::openapi::ValueType for $name {
            const SHAPE: $crate::schema::openapi::Shape =
                $crate::schema::openapi::Shape::Reference(stringify!($name));
        }
    };

    // A body has its shape from its rules.
    (@shape body $name:ident $life:tt) => {};
    (@shape response $name:ident [$($life:lifetime)?]) => {
        impl $(<$life>)? $crate::schema::openapi::ValueType for $name $(<$life>)? {
            const SHAPE: $crate::schema::openapi::Shape =
                $crate::schema::openapi::Shape::Reference(stringify!($name));
        }
    };

    (@rule [$type:ty]) => { <$type as $crate::schema::field::FieldType>::RULE };
    (@rule [$type:ty] $rule:expr) => { $rule };

    (@describe $kind:ident $name:ident [$($life:lifetime)?] [$($about:literal)+] {
        $( {
            [$($doc:literal)+] $serde:tt [$($meta:tt)*] $field:ident [$($key:literal)?] [$type:ty]
            [$($default:expr)?] [$($rule:expr)?] $patch:tt
        } )+
    } {
        $( {
            [$($absent_doc:literal)+] $absent:ident [$($absent_default:expr)?] [$absent_rule:expr] $absent_update:tt
        } )*
    } $example:literal) => {
        impl $(<$life>)? $crate::schema::openapi::Described for $name $(<$life>)? {
            fn description() -> $crate::schema::openapi::Description {
                use $crate::schema::openapi::{Description, Property, ValueType};
                Description {
                    name: stringify!($name),
                    about: concat!($($about),+),
                    is_response: stringify!($kind) == "response",
                    example: $example,
                    properties: vec![
                        $(
                            Property {
                                name: [$($key,)? stringify!($field)][0],
                                about: concat!($($doc),+),
                                shape: Some(<$type as ValueType>::SHAPE),
                                rule: [$(Some($rule),)? None][0],
                                default: [$(Some(serde_json::json!($default)),)? None][0].clone(),
                                $($meta)*
                                ..Property::default()
                            },
                        )+
                        $(
                            Property {
                                name: stringify!($absent),
                                about: concat!($($absent_doc),+),
                                rule: Some($absent_rule),
                                default: [$(Some(serde_json::json!($absent_default)),)? None][0].clone(),
                                ..Property::default()
                            },
                        )*
                    ],
                }
            }
        }
    };

    (@update $fields:tt $absent:tt) => {};
    (@update {
        $( {
            $doc:tt $serde:tt $meta:tt $field:ident $key:tt $type:tt $default:tt $rule:tt [$($patch:ty)?]
        } )+
    } {
        $( {
            $absent_doc:tt $absent:ident $absent_default:tt $absent_rule:tt [$($absent_update:ident)?]
        } )*
    } $about:tt $update:ident $example:literal) => {
        schema! { @split
            body $update [] $about [Default Deserialize]
            { $($( { $doc $serde $meta $field $key [$patch] [] $rule [] } )?)+ }
            { $($( { $absent_doc $absent [] $absent_rule [$absent_update] } )?)* }
            $example
            []
        }
    };

    (
        $(#[doc = $about:literal])+
        #[derive($($derive:ident),+)]
        $kind:ident $name:ident $(<$life:lifetime>)? {
            $(
                $(#[doc = $doc:literal])+
                $(#[serde($($serde:tt)+)])?
                $(#[schema($reference:ident)])?
                $(#[max_length($max:expr)])?
                $(#[pattern($pattern:literal)])?
                $field:ident $(as $key:literal)?: $type:ty $(= $default:expr)? $(=> $rule:expr)?
                    $(, update $patch:ty)?;
            )+
        }
        $(unsupported {
            $(
                $(#[doc = $absent_doc:literal])+
                $absent:ident $(= $absent_default:expr)? => $absent_rule:expr $(, $absent_update:ident)?;
            )+
        })?
        example $example:literal;
        $(
            $(#[doc = $update_about:literal])+
            update $update:ident;
            example $update_example:literal;
        )?
    ) => {
        schema! { @split
            $kind $name [$($life)?] [$($about)+] [$($derive)+]
            {
                $( {
                    [$($doc)+]
                    [$(#[serde($($serde)+)])?]
                    [
                        $(reference: Some(stringify!($reference)),)?
                        $(max_length: Some($max),)?
                        $(pattern: Some($pattern),)?
                    ]
                    $field [$($key)?] [$type] [$($default)?] [$($rule)?] [$($patch)?]
                } )+
            }
            {
                $($( {
                    [$($absent_doc)+] $absent [$($absent_default)?] [$absent_rule] [$($absent_update)?]
                } )+)?
            }
            $example
            [$([$($update_about)+] $update $update_example)?]
        }
    };
}

/// Declares an enumeration whose variants are the words of a JSON string, and `WORDS`, the list of them.
///
/// After `mirrors`, an enumeration of `vmm` with the same variants; conversions in both directions are generated.
macro_rules! choice {
    (@word $variant:ident) => { stringify!($variant) };
    (@word $variant:ident $word:literal) => { $word };

    (
        $(#[$about:meta])+
        $name:ident mirrors $config:path {
            $( $(#[$meta:meta])+ $variant:ident $(= $word:literal)?, )+
        }
    ) => {
        choice! {
            $(#[$about])+
            $name {
                $( $(#[$meta])+ $variant $(= $word)?, )+
            }
        }

        impl From<$name> for $config {
            fn from(choice: $name) -> Self {
                match choice {
                    $($name::$variant => Self::$variant,)+
                }
            }
        }

        impl From<$config> for $name {
            fn from(choice: $config) -> Self {
                use $config as Config;
                match choice {
                    $(Config::$variant => Self::$variant,)+
                }
            }
        }
    };

    (
        $(#[$about:meta])+
        $name:ident {
            $( $(#[$meta:meta])+ $variant:ident $(= $word:literal)?, )+
        }
    ) => {
        $(#[$about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
        pub enum $name {
            $(
                $(#[$meta])+
                $(#[serde(rename = $word)])?
                $variant,
            )+
        }

        impl $name {
            /// Words of all variants.
            pub const WORDS: &'static [&'static str] = &[$(choice!(@word $variant $($word)?)),+];
        }

        impl $crate::schema::field::FieldType for $name {
            const RULE: $crate::schema::field::Rule = $crate::schema::field::Rule::Choice(Self::WORDS);
        }

        #[cfg(test)]
        impl $crate::schema::openapi::ValueType for $name {
            const SHAPE: $crate::schema::openapi::Shape = $crate::schema::openapi::Shape::Words(Self::WORDS);
        }
    };
}

pub(super) use {choice, schema};
