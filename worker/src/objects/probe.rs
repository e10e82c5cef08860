//! Whether a store keeps the promise that commits stand on.
//!
//! A Delta log is a sequence of objects, each created once: of several writers that create the same object, exactly one
//! may win. A store that looks first and writes then answers every single request rightly and still lets several win
//! when they come together; each of them believes that its commit landed, and all but one are lost. Asking it one
//! request after another proves nothing, so [`probe`] asks sixteen at a time.

use std::collections::BTreeSet;

use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use uuid::Uuid;

/// Writers that come together.
const WRITERS: usize = 16;
/// How often they do: a race is a matter of chance, and a racy store lets several win most times.
const ROUNDS: usize = 4;
/// Rounds whose outcome says nothing, because answers were lost, are repeated so often.
const REPEATS_MAX: usize = 4;

/// Why a store must not hold a lake.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It lets several writers create one object.
    #[error(
        "the object store at `{place}` lets several writers win a conditional put ({winners} of {WRITERS} did): Tidegate \
         would lose commits there; use a store whose conditional puts are atomic (AWS S3, Google Cloud Storage, Azure, \
         MinIO, Ceph, R2), or a folder"
    )]
    SeveralWinners {
        /// The store.
        place: String,
        /// How many won.
        winners: usize,
    },
    /// It told one writer that it won and kept what another wrote.
    #[error(
        "the object store at `{place}` told one writer that it won a conditional put and kept what another wrote: \
         Tidegate would lose commits there"
    )]
    WrongContent {
        /// The store.
        place: String,
    },
    /// A listing does not show what was just written.
    #[error(
        "the object store at `{place}` does not list an object that was just written: Tidegate would overlook commits there"
    )]
    StaleListing {
        /// The store.
        place: String,
    },
    /// It does not know conditional writes or reads.
    #[error("the object store at `{place}` does not take {what}, without which Tidegate cannot commit safely there")]
    Unsupported {
        /// The store.
        place: String,
        /// What it does not take.
        what: &'static str,
        /// What it said, if anything.
        #[source]
        source: Option<object_store::Error>,
    },
    /// It could not be asked.
    #[error("asking the object store at `{place}` whether its conditional puts are atomic failed")]
    Store {
        /// The store.
        place: String,
        /// The cause.
        #[source]
        source: object_store::Error,
    },
    /// No round had an outcome.
    #[error(
        "the object store at `{place}` lost so many answers that nothing could be learnt about its conditional puts: \
         try again when it is well"
    )]
    Inconclusive {
        /// The store.
        place: String,
    },
}

/// Makes sure that `store` creates objects atomically, lists what was written and reads on condition. `place` is how
/// messages name it; the probe's objects lie below `prefix` and are deleted when it ends.
///
/// It takes about a hundred small requests, most of them at the same time: some tens of milliseconds on this machine, less
/// than a second anywhere.
///
/// # Errors
/// See [`ProbeError`]: every one means that nothing should be committed there (yet).
pub async fn probe(store: &dyn ObjectStore, place: &str, prefix: &Path) -> Result<(), ProbeError> {
    let folder = prefix.clone().join(format!("probe-{}", Uuid::now_v7().simple()));
    let asked = rounds(store, place, &folder).await;
    // What is left behind is a handful of bytes; failing to delete it must not hide what was found.
    let left = store.list(Some(&folder)).map_ok(|object| object.location).boxed();
    let deleted: Result<Vec<Path>, _> = store.delete_stream(left).try_collect().await;
    if let Err(error) = deleted {
        tracing::debug!(store = place, "The probe's objects were not deleted: {error}");
    }
    asked
}

async fn rounds(store: &dyn ObjectStore, place: &str, folder: &Path) -> Result<(), ProbeError> {
    let (mut conclusive, mut last) = (0, None);
    for round in 0..ROUNDS + REPEATS_MAX {
        let key = folder.clone().join(format!("{round}"));
        if let Some(etag) = race(store, place, &key).await? {
            conclusive += 1;
            last = Some((key, etag));
        }
        if conclusive == ROUNDS {
            break;
        }
    }
    match last {
        Some((key, etag)) if conclusive == ROUNDS => {
            listed(store, place, folder, &key).await?;
            conditional_get(store, place, &key, etag).await
        }
        _ => Err(ProbeError::Inconclusive { place: place.to_owned() }),
    }
}

/// One object, many creators. The entity tag of the object; `None` when the answer of the winner was lost, which no
/// store can be blamed for.
async fn race(store: &dyn ObjectStore, place: &str, key: &Path) -> Result<Option<Option<String>>, ProbeError> {
    let failed = |source| ProbeError::Store { place: place.to_owned(), source };
    let create = |writer: usize| async move {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        store.put_opts(key, content(writer).into(), options).await
    };
    let mut winners = BTreeSet::new();
    let mut trouble = None;
    for (writer, answer) in join_all((0..WRITERS).map(create)).await.into_iter().enumerate() {
        match answer {
            Ok(_) => {
                winners.insert(writer);
            }
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {}
            Err(error @ (object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. })) => {
                return Err(unsupported(place, "conditional puts", Some(error)));
            }
            Err(error) if is_not_implemented(&error) => {
                return Err(unsupported(place, "conditional puts", Some(error)));
            }
            Err(error) => trouble = Some(error),
        }
    }
    if winners.len() > 1 {
        return Err(ProbeError::SeveralWinners { place: place.to_owned(), winners: winners.len() });
    }
    let found = match store.get(key).await {
        Ok(found) => found,
        // Nobody won and nothing is there: everybody met the same trouble.
        Err(object_store::Error::NotFound { .. }) if winners.is_empty() => {
            return trouble.map_or(Ok(None), |error| Err(failed(error)));
        }
        Err(error) => return Err(failed(error)),
    };
    let etag = found.meta.e_tag.clone();
    let found = found.bytes().await.map_err(failed)?;
    match winners.first() {
        Some(winner) if found == content(*winner) => Ok(Some(etag)),
        Some(_) => Err(ProbeError::WrongContent { place: place.to_owned() }),
        None => Ok(None),
    }
}

fn content(writer: usize) -> Vec<u8> {
    format!("writer {writer} of a test whether writers exclude each other\n").into_bytes()
}

async fn listed(store: &dyn ObjectStore, place: &str, folder: &Path, key: &Path) -> Result<(), ProbeError> {
    let failed = |source| ProbeError::Store { place: place.to_owned(), source };
    let listed: Vec<Path> =
        store.list(Some(folder)).map_ok(|object| object.location).try_collect().await.map_err(failed)?;
    if listed.contains(key) { Ok(()) } else { Err(ProbeError::StaleListing { place: place.to_owned() }) }
}

async fn conditional_get(
    store: &dyn ObjectStore,
    place: &str,
    key: &Path,
    etag: Option<String>,
) -> Result<(), ProbeError> {
    let what = "conditional reads";
    let with = |tag: String| GetOptions { if_match: Some(tag), ..GetOptions::default() };
    let Some(etag) = etag else { return Err(unsupported(place, "entity tags", None)) };
    match store.get_opts(key, with(etag)).await {
        Ok(_) => {}
        Err(error @ object_store::Error::Precondition { .. }) => return Err(unsupported(place, what, Some(error))),
        Err(source) => return Err(ProbeError::Store { place: place.to_owned(), source }),
    }
    match store.get_opts(key, with("\"0123456789abcdef0123456789abcdef\"".to_owned())).await {
        Err(object_store::Error::Precondition { .. }) => Ok(()),
        Ok(_) => Err(unsupported(place, what, None)),
        Err(source) => Err(ProbeError::Store { place: place.to_owned(), source }),
    }
}

fn unsupported(place: &str, what: &'static str, source: Option<object_store::Error>) -> ProbeError {
    ProbeError::Unsupported { place: place.to_owned(), what, source }
}

/// Whether the store answered 501, which its client knows only as text.
fn is_not_implemented(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::Generic { .. }) && error.to_string().contains("501 Not Implemented")
}
