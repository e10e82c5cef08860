//! The JSON Schema for editors, from the same declarations that files are read by.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::settings::ProjectFile;
use super::written::DefinitionFile;

/// A JSON Schema (draft 2020-12) that accepts `tidegate.yaml` and definition files.
pub fn json_schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let settings = generator.subschema_for::<ProjectFile>();
    let definitions = generator.subschema_for::<DefinitionFile>();
    let parts = generator.take_definitions(true);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tidegate project",
        "description": "`tidegate.yaml` or a definition file of a Tidegate project",
        "anyOf": [definitions, settings],
        "$defs": parts,
    })
}
