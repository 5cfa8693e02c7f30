//! Settings that no log, error or printed configuration shows.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// What is shown in place of a secret.
const HIDDEN: &str = "(hidden)";

/// A key or password.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// A URL that may hold a password.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(String);

impl Secret {
    /// The secret itself, for whoever must present it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl SecretUrl {
    /// All of the URL, for whoever connects.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(secret: &str) -> Self {
        Self(secret.to_owned())
    }
}

impl From<&str> for SecretUrl {
    fn from(url: &str) -> Self {
        Self(url.to_owned())
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "" } else { HIDDEN })
    }
}

impl fmt::Display for SecretUrl {
    /// Without user, password and parameters, any of which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return f.write_str(if self.0.is_empty() { "" } else { HIDDEN });
        };
        let (address, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        if parameters.contains('@') {
            // Either a password holds a question mark, or a parameter an at sign: which cannot be told.
            return f.write_str(HIDDEN);
        }
        let place = address.rsplit_once('@').map_or(address, |(_user, place)| place);
        write!(f, "{scheme}://{place}")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
