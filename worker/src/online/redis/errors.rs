//! What Redis answers, by what the caller can do about it.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::online::OnlineError;

/// Trouble that passes, with what helps.
#[derive(Debug, thiserror::Error)]
#[error("{advice}")]
struct Trouble {
    advice: &'static str,
    source: RedisError,
}

/// Gives an error its meaning: `query.await.map_err(on("reading"))`.
pub(super) fn on(doing: &'static str) -> impl Fn(RedisError) -> OnlineError {
    move |error| match advice(&error) {
        Some(advice) => OnlineError::Unavailable(Box::new(Trouble { advice, source: error })),
        None => OnlineError::Internal { doing, source: Box::new(error) },
    }
}

/// An answer that this program does not understand.
pub(super) fn strange(problem: impl Into<String>) -> OnlineError {
    OnlineError::Internal { doing: "understanding an answer of", source: problem.into().into() }
}

/// Whether the connection should be thrown away: it is broken, its answers may be those of earlier questions, or the server
/// at its other end is no longer the one to ask.
pub(super) fn spoils_connection(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_unrecoverable_error()
        || matches!(error.code(), Some("READONLY" | "LOADING" | "MASTERDOWN" | "UNBLOCKED"))
}

/// Whether a cluster moved the key, so that the command should be sent again to whoever has it now.
pub(super) fn is_moved(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, MasterDown, Moved, ReadOnly, TryAgain};
    matches!(error.kind(), ErrorKind::Server(Moved | Ask | TryAgain | ClusterDown | MasterDown | ReadOnly))
}

/// What to do about trouble that passes; `None` for what does not.
fn advice(error: &RedisError) -> Option<&'static str> {
    let by_code = match error.code() {
        Some("OOM") => {
            "Redis is full (`OOM`): raise its `maxmemory`, or keep fewer generations with `online: {keep: …}`; what was \
             live stays live"
        }
        Some("READONLY") => {
            "Redis is a read-only replica (`READONLY`): a failover is under way, or the URL names a replica instead of \
             the primary"
        }
        Some("LOADING") => "Redis is reading its data from disk (`LOADING`): it answers when it is done",
        Some("MISCONF") => {
            "Redis takes no writes because it cannot save to disk (`MISCONF`): see its log, and make room on its disk"
        }
        Some("NOREPLICAS") => {
            "Redis takes no writes because too few replicas are in step (`NOREPLICAS`): bring replicas back, or lower \
             `min-replicas-to-write`"
        }
        Some("CLUSTERDOWN") => {
            "the Redis cluster does not serve all slots (`CLUSTERDOWN`): a node is gone, see `redis-cli --cluster check`"
        }
        Some("MASTERDOWN") => "the Redis replica has lost its primary (`MASTERDOWN`): a failover should follow",
        Some("TRYAGAIN" | "MOVED" | "ASK") => "the Redis cluster is moving slots: it passes",
        Some("BUSY") => "Redis is busy with somebody's script (`BUSY`): it passes, or `redis-cli script kill` ends it",
        Some("UNBLOCKED" | "NOTREADY" | "FAILOVER") => "Redis is changing its primary: it passes",
        Some("ERR") if error.detail().is_some_and(|detail| detail.contains("max number of clients")) => {
            "Redis has too many clients: raise its `maxclients`"
        }
        _ => "",
    };
    if !by_code.is_empty() {
        return Some(by_code);
    }
    match error.kind() {
        ErrorKind::MasterNameNotFoundBySentinel => Some("no sentinel knows a primary of that name that answers"),
        ErrorKind::ClusterConnectionNotFound => {
            Some("no node of the Redis cluster can be reached: are its addresses right?")
        }
        _ if error.is_timeout() => Some("Redis did not answer in time: it is overloaded, paused or cut off"),
        _ if error.is_connection_refusal() => {
            Some("nothing answers at the address of Redis: does it run, and is the URL right?")
        }
        ErrorKind::Io => Some("the connection to Redis broke"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::make_extension_error;

    fn classified(code: &str) -> String {
        let error = on("writing to")(make_extension_error(code.to_owned(), Some("as Redis says".to_owned())));
        match &error {
            OnlineError::Unavailable(source) => format!("passes: {source}"),
            OnlineError::Internal { .. } => "stays".to_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_passes_is_told_from_what_stays() {
        for code in ["OOM", "MISCONF", "NOREPLICAS", "BUSY"] {
            let told = classified(code);
            assert!(told.starts_with("passes: ") && told.contains(code), "{told}");
        }
        for code in ["WRONGTYPE", "NOAUTH", "WRONGPASS", "NOPERM", "CROSSSLOT", "EXECABORT"] {
            assert_eq!(classified(code), "stays", "{code}");
        }
    }
}
