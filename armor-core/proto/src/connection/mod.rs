//! Placeholder, being replaced.
