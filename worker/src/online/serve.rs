//! What a reader is given of one entity: stored features, defaults for those that are absent, and switches honoured.
//!
//! This is the one place of this program that does so; `docs/online-layout.md` says the same to clients that read a store
//! by themselves.

use indexmap::IndexMap;
use tidegate_registry::model::FeatureView;
use tidegate_registry::switches::{BUCKETS, Off, Serve, ViewSwitches};
use tidegate_registry::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::{Live, OnlineRow, OnlineStore, Result};

/// Where an entity stands when a feature is switched off for some: XXH3 with 64 bits and seed 0 of the UTF-8 bytes of its
/// key ([`crate::entity_key`]), as an unsigned number, modulo 10,000.
pub fn bucket(entity_key: &str) -> u16 {
    // Below 10,000, so that it fits.
    u16::try_from(xxh3_64(entity_key.as_bytes()) % u64::from(BUCKETS)).unwrap_or(0)
}

/// What a reader is given of one feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// The text that is stored.
    Stored(String),
    /// The default of the feature's definition; null where it has none.
    Default,
    /// Nothing.
    Null,
}

/// What a reader is given of one entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// What is live of the view.
    pub live: Option<Live>,
    /// The row as it is stored, switches or not; `None` when the entity is not there, or counts no more.
    pub row: Option<OnlineRow>,
    /// Every feature of the definition, in its order.
    pub features: IndexMap<String, Given>,
    /// Features that are switched off for this entity.
    pub switched: IndexMap<String, Serve>,
}

/// Reads one entity of `view` as of `now` as a model is to have it.
///
/// # Errors
/// As [`OnlineStore::get_many`].
pub async fn serve(store: &dyn OnlineStore, view: &FeatureView, entity_key: &str, now: Instant) -> Result<Served> {
    let row = store.get(&view.id, entity_key, now).await?;
    let live = store.live(&view.id).await?;
    // After the row, so that what was switched off before this began is never given.
    let switches = store.switches(&view.id).await?;
    Ok(given(view, entity_key, row, live, &switches))
}

/// What a reader is given of an entity whose row and switches have been read.
pub fn given(
    view: &FeatureView,
    entity_key: &str,
    row: Option<OnlineRow>,
    live: Option<Live>,
    switches: &ViewSwitches,
) -> Served {
    let bucket = bucket(entity_key);
    let switched: IndexMap<String, Serve> = view
        .features
        .iter()
        .filter_map(|feature| Some((feature.name.clone(), switches.off.get(&feature.name)?)))
        .filter(|(_, off)| bucket < off.below)
        .map(|(name, off)| (name, off.serve))
        .collect();
    let stored = row.as_ref().map_or(&[] as &[_], |row| row.features.as_slice());
    let features = view.features.iter().map(|feature| {
        let text = || stored.iter().find(|(name, _)| *name == feature.name).map(|(_, text)| text.clone());
        let given = match switched.get(&feature.name) {
            Some(Serve::Null) => Given::Null,
            Some(Serve::Default) => Given::Default,
            None => text().map_or(Given::Default, Given::Stored),
        };
        (feature.name.clone(), given)
    });
    let features = features.collect();
    Served { live, row, features, switched }
}

/// Reads the form that [`tidegate_registry::switches::ViewSwitches::to_json`] writes.
pub(super) fn parse_switches(json: &str) -> serde_json::Result<IndexMap<String, Off>> {
    serde_json::from_str(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other languages compute these, so they must stay. Computed with Python's `xxhash` as in `docs/online-layout.md`.
    #[test]
    fn an_entity_keeps_its_bucket() {
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(["AA", "UA", r"EWR:B\:6", "é"].map(bucket), [7244, 856, 2997, 1795]);
    }

    #[test]
    fn buckets_are_even_enough() {
        let keys = (0..20_000).map(|number| format!("carrier-{number}"));
        let off = keys.filter(|key| bucket(key) < 2_500).count();
        assert!((4_700..5_300).contains(&off), "{off} of 20,000 are in a quarter of the buckets");
    }
}
