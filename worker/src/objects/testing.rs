//! Stores for tests: the servers of this test binary, and how to reach them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::sync::OnceLock;
use std::time::Duration;

use tidegate_registry::definitions::settings::StorageSettings;
use tidegate_servers::{Moto, S3Endpoint, S3Fake, S3sFs};
use url::Url;
use uuid::Uuid;

use super::{Environment, Patience, Stores};

/// The bucket of every test.
pub(crate) const BUCKET: &str = "lake";

/// Waits less than people would, so that a test of a time-out ends.
pub(crate) fn short() -> Patience {
    Patience {
        connect: Duration::from_secs(2),
        request: Duration::from_millis(1_500),
        retries: 4,
        retry_for: Duration::from_secs(20),
        backoff: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
    }
}

/// The stores of a server.
pub(crate) fn stores(endpoint: &S3Endpoint, patience: Patience) -> Stores {
    Stores::with(StorageSettings::default(), Environment::from_pairs(endpoint.environment()), patience)
}

/// A fake of its own, since faults are not shared.
pub(crate) fn fake() -> S3Fake {
    let fake = S3Fake::start().expect("a free port");
    fake.create_bucket(BUCKET);
    fake
}

/// The moto server that all tests of this binary share; it ends with the process.
pub(crate) fn moto() -> S3Endpoint {
    static MOTO: OnceLock<Moto> = OnceLock::new();
    let moto = MOTO.get_or_init(|| {
        let moto = Moto::start().unwrap_or_else(|error| panic!("{error:#}"));
        moto.endpoint().create_bucket(BUCKET).unwrap();
        moto
    });
    moto.endpoint()
}

/// A store that lets several writers win.
pub(crate) fn racy() -> S3sFs {
    let racy = S3sFs::start().unwrap();
    racy.create_bucket(BUCKET).unwrap();
    racy
}

/// What one of many probes of a racy store finds: whether writers meet there is a matter of chance.
pub(crate) async fn caught<T>(mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..100 {
        if let Some(found) = probe().await {
            return found;
        }
    }
    panic!("in a hundred probes no writers met")
}

/// A place in the bucket that no other test uses.
pub(crate) fn place() -> Url {
    format!("s3://{BUCKET}/{}/", Uuid::now_v7().simple()).parse().unwrap()
}
