//! What a source says about its version of a value.

/// What a source says about its version of a value, for conditional requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validators {
    /// The entity tag, as in the HTTP header `ETag`.
    pub etag: Option<Box<str>>,
    /// The time of the last change, as in the HTTP header `Last-Modified`.
    pub last_modified: Option<Box<str>>,
}

impl Validators {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }

    /// These, with those of `other` where there is none.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            etag: self.etag.or(other.etag),
            last_modified: self.last_modified.or(other.last_modified),
        }
    }
}
