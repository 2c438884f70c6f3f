//! The name of the table.

use std::fmt;

use bentocache_driver::{DriverError, ErrorKind};

/// The longest name in PostgreSQL, the strictest of the databases.
const LONGEST: usize = 63;

/// A valid name of a table, with its schema if one was given.
///
/// It contains only letters, digits and underscores, so that it can be a part of SQL. Quote its
/// parts nevertheless, because an SQL keyword is also a valid name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    schema: Option<String>,
    table: String,
}

impl TableName {
    /// Parses `table` or `schema.table`: each part consists of ASCII letters, digits and
    /// underscores, does not begin with a digit, and has at most 63 characters.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for any other text.
    pub fn new(name: &str) -> Result<Self, DriverError> {
        let (schema, table) = match name.split_once('.') {
            Some((schema, table)) => (Some(schema), table),
            None => (None, name),
        };
        if !is_name(table) || !schema.is_none_or(is_name) {
            return Err(DriverError::new(
                ErrorKind::Config,
                format!(
                    "the table name {name:?} cannot be used: write `table` or `schema.table`, each \
                     of letters, digits and underscores, not beginning with a digit, at most \
                     {LONGEST} long"
                ),
            ));
        }
        Ok(Self { schema: schema.map(str::to_owned), table: table.to_owned() })
    }

    /// The schema (in MySQL, the database), if one was given.
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The table without its schema.
    pub fn table(&self) -> &str {
        &self.table
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.table),
            None => f.write_str(&self.table),
        }
    }
}

fn is_name(name: &str) -> bool {
    (1..=LONGEST).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for name in ["bentocache", "_a1", "App_Cache", "select", &"a".repeat(63), "app.cache"] {
            assert_eq!(TableName::new(name).unwrap().to_string(), name);
        }
        let long = "a".repeat(64);
        for name in ["", ".", "a.", ".a", "a.b.c", "1a", "a b", "a\"b", "a`b", "a;b", "é", &long] {
            let error = TableName::new(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{name}");
            assert!(error.to_string().contains("at most 63"), "{error}");
        }
    }
}
