//! Identifies the logic of a view, so that a change of comments or descriptions recomputes nothing.
