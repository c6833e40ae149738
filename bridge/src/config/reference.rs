//! References to secrets as they stand in the configuration: text that is read as [`SecretRef`] or refused.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::secrets::SecretRef;

impl Serialize for SecretRef {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'d> Deserialize<'d> for SecretRef {
    fn deserialize<D: Deserializer<'d>>(from: D) -> Result<Self, D::Error> {
        // The error does not repeat the text, which may be the secret itself.
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for SecretRef {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "SecretReference".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-secret": true })
    }
}
