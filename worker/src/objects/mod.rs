//! Object stores: opened from a URL, with credentials from the environment alone, and asked whether they keep what the
//! lake is built on.
//!
//! Begin with [`Stores`]: it opens the store of a bucket once and hands it to whoever reads or writes there. [`probe`]
//! asks a store for the one promise that commits need: of several writers that create one object, one wins.
//!
//! **Patience.** A request that gets no answer must fail in bounded time, however the connection died; a store that is
//! briefly overloaded must not fail a run. So every request has a deadline ([`Patience`]), and reads are repeated for a
//! while. Conditional writes are *not* made safe here: below us the client repeats a PUT whose connection broke, finds its
//! own object and says that somebody else was first. Whoever creates objects has to look at what is there: see
//! [`crate::lake`].
//!
//! **Threads.** Connections live on threads of their own (`io_threads`), whoever asks: a runtime that is busy computing
//! would let them time out, and one that ends would take connections with it that others still count on (delta-rs starts
//! such short-lived runtimes).
//!
//! **Secrets.** Keys come from the environment (`AWS_…`, `GOOGLE_…`, `AZURE_…`) and stay inside the client: nothing here
//! shows them, `Debug` included.

mod probe;
mod remote;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use deltalake::DeltaResult;
use deltalake::logstore::{
    LogStore, LogStoreFactory, ObjectStoreRef, StorageConfig, default_logstore, logstore_factories,
};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::SpawnedReqwestConnector;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};
use tidegate_registry::definitions::settings::StorageSettings;
use tokio::runtime::Runtime;
use url::{Host, Url};

pub use probe::{ProbeError, probe};
use remote::Remote;

/// Threads that talk to object stores: they move bytes, encrypt and decrypt.
const IO_THREADS: usize = 2;

/// How long a store may take.
///
/// The lease of a task is renewed while it waits here, so these need not fit into a lease; they bound how long a dead
/// connection or a store that is down holds a worker's slot before the task fails and is tried again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until a connection stands.
    pub connect: Duration,
    /// Until an answer has come with its whole body: also the end of connections that died without a word.
    /// A body that was cut is continued where it stopped, so this bounds one request and not one object.
    pub request: Duration,
    /// How often a request is repeated.
    pub retries: usize,
    /// No repetition begins later than this after the first request.
    pub retry_for: Duration,
    /// The pause before the first repetition; doubled each time up to `backoff_max`, with some chance in it.
    pub backoff: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
}

impl Default for Patience {
    /// 5 s to connect, 30 s for an answer, and repetitions for 100 s: a store that says "slow down" for a minute is ridden
    /// out, and what takes longer fails inside the 120 s that a try to commit may take.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(30),
            retries: 12,
            retry_for: Duration::from_secs(100),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(15),
        }
    }
}

impl Patience {
    fn retry(&self) -> RetryConfig {
        RetryConfig {
            backoff: BackoffConfig { init_backoff: self.backoff, max_backoff: self.backoff_max, base: 2.0 },
            max_retries: self.retries,
            retry_timeout: self.retry_for,
        }
    }

    /// As the clients' builders take it.
    fn client(&self) -> [(ClientConfigKey, String); 2] {
        let millis = |duration: Duration| format!("{}ms", duration.as_millis());
        [(ClientConfigKey::ConnectTimeout, millis(self.connect)), (ClientConfigKey::Timeout, millis(self.request))]
    }
}

/// What the environment says about object stores: keys, tokens, regions, endpoints.
#[derive(Clone, Default)]
pub struct Environment(Vec<(String, String)>);

impl Environment {
    /// The environment of this process; names and values that are no text are left out.
    pub fn of_process() -> Self {
        Self::from_pairs(
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }

    /// Given names and values.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut pairs: Vec<_> = pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        // Of two variables that mean the same the later wins: always the same one, however the process was started.
        pairs.sort();
        Self(pairs)
    }

    /// Variables that begin with `prefix` and mean something to a client.
    fn keys<K: FromStr>(&self, prefix: &str) -> Vec<(K, String)> {
        let named = self.0.iter().filter(|(name, _)| name.starts_with(prefix));
        named.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.clone()))).collect()
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(variable, _)| variable == name).map(|(_, value)| value.as_str())
    }
}

impl fmt::Debug for Environment {
    /// How many variables there are; never what they say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} variables", self.0.len())
    }
}

/// The object stores that a process uses, each opened once.
#[derive(Debug, Clone, Default)]
pub struct Stores {
    settings: StorageSettings,
    environment: Environment,
    patience: Patience,
    /// By scheme and bucket.
    opened: Arc<Mutex<HashMap<String, Arc<dyn ObjectStore>>>>,
}

impl Stores {
    /// Stores as `settings` say, with the credentials of this process's environment.
    pub fn new(settings: StorageSettings) -> Self {
        Self::with(settings, Environment::of_process(), Patience::default())
    }

    /// The same with a given environment and patience.
    pub fn with(settings: StorageSettings, environment: Environment, patience: Patience) -> Self {
        Self { settings, environment, patience, opened: Arc::default() }
    }

    /// The store of `url`'s bucket: paths in it are those of URLs. Nothing is sent to it yet.
    ///
    /// # Errors
    /// When the scheme is not one of an object store, the URL holds a password, its endpoint is not encrypted, or the
    /// environment's credentials are incomplete.
    pub fn get(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        let name = bucket_of(url)?;
        if let Some(known) = self.opened.lock().ok().and_then(|opened| opened.get(&name).cloned()) {
            return Ok(known);
        }
        let opening = || format!("opening the object store at `{name}`");
        let client: Arc<dyn ObjectStore> = match url.scheme() {
            "s3" | "s3a" => self.s3(url).with_context(opening)?,
            "gs" => self.google(url).with_context(opening)?,
            _ => self.azure(url).with_context(opening)?,
        };
        register_schemes();
        let store: Arc<dyn ObjectStore> = Arc::new(Remote::new(name.clone(), client));
        if let Ok(mut opened) = self.opened.lock() {
            opened.insert(name, Arc::clone(&store));
        }
        Ok(store)
    }

    fn s3(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        let bucket = url.host_str().context("the URL names no bucket")?;
        let mut builder = AmazonS3Builder::new();
        for (key, value) in self.environment.keys::<AmazonS3ConfigKey>("AWS_") {
            builder = builder.with_config(key, value);
        }
        if let Some(region) = &self.settings.region {
            builder = builder.with_region(region);
        }
        let endpoint = self.settings.endpoint.clone().or_else(|| {
            let named = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
            named.iter().find_map(|key| builder.get_config_value(key))
        });
        let path_style = self.settings.path_style.or_else(|| {
            let hosted = self.environment.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST")?;
            Some(hosted != "true")
        });
        match endpoint {
            Some(endpoint) => {
                let (endpoint, hosted) = self.endpoint(&endpoint, bucket, path_style)?;
                builder = builder
                    .with_allow_http(endpoint.starts_with("http://"))
                    .with_config(AmazonS3ConfigKey::S3Endpoint, endpoint)
                    .with_virtual_hosted_style_request(hosted);
            }
            // A certificate of AWS covers one level of names, so a bucket with dots cannot be a host.
            None => {
                let hosted = !path_style.unwrap_or(bucket.contains('.'));
                builder = builder.with_virtual_hosted_style_request(hosted);
            }
        }
        for (key, value) in self.patience.client() {
            builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
        }
        let store = builder
            .with_bucket_name(bucket)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_retry(self.patience.retry())
            .with_http_connector(io_threads()?)
            .build()?;
        Ok(Arc::new(store))
    }

    /// The endpoint as the client takes it, and whether the bucket is part of its host.
    fn endpoint(&self, endpoint: &str, bucket: &str, path_style: Option<bool>) -> Result<(String, bool)> {
        // Never quoted before it is known to hold no password.
        let mut url = Url::parse(endpoint).context("the endpoint is not a URL")?;
        if !url.username().is_empty() || url.password().is_some() {
            bail!("the endpoint holds credentials: leave them to `AWS_ACCESS_KEY_ID` and kin");
        }
        let allowed = self.settings.allow_http || self.environment.get("AWS_ALLOW_HTTP") == Some("true");
        if url.scheme() != "https" && !is_this_machine(&url) && !allowed {
            bail!("the endpoint `{url}` is not encrypted: use `https://`, or allow it with `allow_http: true`");
        }
        let can_be_hosted = matches!(url.host(), Some(Host::Domain(name)) if name != "localhost");
        if path_style.unwrap_or(true) || !can_be_hosted {
            return Ok((url.as_str().trim_end_matches('/').to_owned(), false));
        }
        let host = format!("{bucket}.{}", url.host_str().unwrap_or_default());
        url.set_host(Some(&host)).with_context(|| format!("`{host}` is not the name of a host"))?;
        Ok((url.as_str().trim_end_matches('/').to_owned(), true))
    }

    fn google(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        let mut builder = GoogleCloudStorageBuilder::new();
        for (key, value) in self.environment.keys::<GoogleConfigKey>("GOOGLE_") {
            builder = builder.with_config(key, value);
        }
        for (key, value) in self.patience.client() {
            builder = builder.with_config(GoogleConfigKey::Client(key), value);
        }
        let bucket = url.host_str().context("the URL names no bucket")?;
        Ok(Arc::new(
            builder
                .with_bucket_name(bucket)
                .with_retry(self.patience.retry())
                .with_http_connector(io_threads()?)
                .build()?,
        ))
    }

    fn azure(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        let mut builder = MicrosoftAzureBuilder::new();
        for (key, value) in self.environment.keys::<AzureConfigKey>("AZURE_") {
            builder = builder.with_config(key, value);
        }
        if let Some(endpoint) = self.environment.get("IDENTITY_ENDPOINT") {
            builder = builder.with_msi_endpoint(endpoint);
        }
        for (key, value) in self.patience.client() {
            builder = builder.with_config(AzureConfigKey::Client(key), value);
        }
        Ok(Arc::new(
            builder
                .with_url(url.as_str())
                .with_retry(self.patience.retry())
                .with_http_connector(io_threads()?)
                .build()?,
        ))
    }
}

/// Whether a text is the URL of a place in an object store.
pub fn is_object_url(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| SCHEMES.contains(&url.scheme()))
}

/// The schemes of object stores.
const SCHEMES: [&str; 8] = ["s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss"];

/// Scheme and bucket of a URL, as in `s3://bucket`.
///
/// # Errors
/// When it is not the URL of an object store, or holds a password.
pub(crate) fn bucket_of(url: &Url) -> Result<String> {
    if !SCHEMES.contains(&url.scheme()) {
        bail!("`{}://` is not a kind of store that Tidegate knows", url.scheme());
    }
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.with_context(|| format!("a URL of `{}://` names no bucket", url.scheme()))?;
    // Azure writes its container where others have a user.
    let container = url.scheme().starts_with("abfs").then(|| url.username()).filter(|name| !name.is_empty());
    if url.password().is_some() || (!url.username().is_empty() && container.is_none()) {
        bail!("the URL of the store at `{host}` holds credentials: leave them to the environment");
    }
    let container = container.map(|container| format!("{container}@")).unwrap_or_default();
    Ok(format!("{}://{container}{host}", url.scheme()))
}

fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The threads that talk to object stores; they live as long as the process.
fn io_threads() -> Result<SpawnedReqwestConnector> {
    static THREADS: OnceLock<Option<Runtime>> = OnceLock::new();
    let threads = THREADS.get_or_init(|| {
        let mut threads = tokio::runtime::Builder::new_multi_thread();
        threads.worker_threads(IO_THREADS).thread_name("objects").enable_all().build().ok()
    });
    let threads = threads.as_ref().context("the threads for object stores could not be started")?;
    Ok(SpawnedReqwestConnector::new(threads.handle().clone()))
}

/// delta-rs keeps a list of schemes whose logs it can write; object stores join it with the crates of their SDKs, which
/// are not needed when the store is handed in.
fn register_schemes() {
    let factories = logstore_factories();
    for scheme in SCHEMES {
        if let Ok(scheme) = Url::parse(&format!("{scheme}://")) {
            factories.entry(scheme).or_insert_with(|| Arc::new(ConditionalPuts));
        }
    }
}

/// Logs whose entries are created by conditional writes: what [`probe`] makes sure of.
#[derive(Debug)]
struct ConditionalPuts;

impl LogStoreFactory for ConditionalPuts {
    fn with_options(
        &self,
        prefixed_store: ObjectStoreRef,
        root_store: ObjectStoreRef,
        location: &Url,
        options: &StorageConfig,
    ) -> DeltaResult<Arc<dyn LogStore>> {
        Ok(default_logstore(prefixed_store, root_store, location, options))
    }
}
