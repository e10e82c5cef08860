//! The registry's Store on a SQL database.
