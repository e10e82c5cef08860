//! Where registry, lake and online store may be, and how that is written.

use std::fmt;
use std::path::PathBuf;

use url::Url;

use super::RedisLocation;

/// A text that no message, log or `Debug` output shows: [`Secret::expose`] is the only way to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for whoever connects with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// Where a registry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryLocation {
    /// A SQLite file: for the processes of one machine.
    Sqlite(PathBuf),
    /// A PostgreSQL database, by its URL: for as many processes and machines as one likes.
    Postgres(Secret),
}

impl fmt::Display for RegistryLocation {
    /// As people write it, without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(url) => match Url::parse(url.expose()) {
                Ok(url) => {
                    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                    write!(f, "postgres://{}{port}{}", url.host_str().unwrap_or_default(), url.path())
                }
                Err(_) => f.write_str("postgres"),
            },
        }
    }
}

/// Where a lake is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LakeLocation {
    /// A folder.
    Directory(PathBuf),
    /// A place in an object store, as in `s3://bucket/prefix/`: always with a slash at the end.
    Object(Url),
}

impl fmt::Display for LakeLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::Object(url) => url.fmt(f),
        }
    }
}

/// Where an online store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnlineLocation {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A Redis: standalone, watched by sentinels, or a cluster.
    Redis(RedisLocation),
}

impl fmt::Display for OnlineLocation {
    /// As people write it, without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Redis(location) => location.fmt(f),
        }
    }
}

/// One of a project's online stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnlineTarget {
    /// Where it is.
    pub location: OnlineLocation,
    /// Whether a run waits for it. Without, a run goes on when it is out of reach and it is brought up to date later.
    pub required: bool,
}

/// How to reach object stores: lake and sources alike. Credentials are not among it: those come from the environment
/// (`AWS_ACCESS_KEY_ID` and kin) only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StorageSettings {
    /// The URL of an S3-compatible service; `None` for AWS itself (or `AWS_ENDPOINT_URL`).
    pub endpoint: Option<String>,
    /// The region; `None` for what the environment says.
    pub region: Option<String>,
    /// Whether the bucket stands in the path and not in the host name, as most services but AWS want it; `None` for what
    /// the environment says.
    pub path_style: Option<bool>,
    /// Whether `http://` endpoints other than this machine's are allowed.
    pub allow_http: bool,
}

/// The schemes of object stores that Tidegate knows.
pub(super) const OBJECT_SCHEMES: [&str; 8] = ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl"];

/// A place in an object store, or what is wrong with it.
pub(super) fn object_url(text: &str) -> Result<Url, String> {
    let mut url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    if !url.username().is_empty() && !url.scheme().starts_with("abfs") || url.password().is_some() {
        return Err("holds credentials: leave them to the environment (`AWS_ACCESS_KEY_ID` and kin)".to_owned());
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no bucket".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("holds `?` or `#`, which no place in an object store has".to_owned());
    }
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// The URL of a PostgreSQL database, or what is wrong with it. Messages never quote it: it may hold a password.
pub(super) fn postgres_url(text: &str) -> Result<Secret, String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    if url.path().trim_matches('/').is_empty() {
        return Err("names no database".to_owned());
    }
    Ok(Secret::new(text))
}
