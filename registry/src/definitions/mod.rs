//! From an author's YAML files to a [`crate::model::Project`], or to everything that is wrong with them.
