//! The names of Redis's keys and fields, and the texts in them: `docs/online-layout.md` says the same to other languages.

use std::sync::OnceLock;

use chrono::{DateTime, SecondsFormat};
use redis::Value;
use tidegate_registry::ids::{DrillId, ProjectName, ViewId};
use tidegate_registry::time::Instant;

use crate::online::OnlineRow;

/// How many slots a cluster has.
const SLOTS: usize = 16_384;

/// The field that says since when a row's features are true.
pub(super) const EVENT_TIMESTAMP: &str = "_event_timestamp";
/// The field that says from when on a row no longer counts.
pub(super) const EXPIRES_AT: &str = "_expires_at";
/// The field with the publish number that wrote a row in place.
pub(super) const PUBLISH: &str = "_publish";

/// The keys of one project, or of a drill of it.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    project: ProjectName,
    /// What stands between `tg:` and the next colon: the project, or a name that no project can have.
    space: String,
}

impl Keys {
    pub(super) fn new(project: ProjectName) -> Self {
        Self { space: project.to_string(), project }
    }

    /// Those of a drill: names of projects hold no `~`.
    pub(super) fn of_drill(project: ProjectName, id: DrillId) -> Self {
        Self { space: format!("{project}~drill-{id}"), project }
    }

    /// Whether they are those of a drill.
    pub(super) fn is_of_drill(&self) -> bool {
        self.space != self.project.as_str()
    }

    pub(super) fn project(&self) -> &ProjectName {
        &self.project
    }

    pub(super) fn owner(&self) -> String {
        format!("tg:{}:owner", self.space)
    }

    pub(super) fn live(&self) -> String {
        format!("tg:{}:live", self.space)
    }

    /// What every row's key of a generation begins with.
    pub(super) fn row_prefix(&self, view: &ViewId, generation: u64) -> String {
        format!("tg:{}:{view}:g{generation}:", self.space)
    }

    /// The hash of chunks that list the entities of a generation.
    pub(super) fn index(&self, view: &ViewId, generation: u64) -> String {
        format!("tg:{}:index:{view}:g{generation}", self.space)
    }

    /// Who fills the view anew just now.
    pub(super) fn care(&self, view: &ViewId) -> String {
        format!("tg:{}:care:{view}", self.space)
    }

    /// The key that remembers which publication removed a row in place. It must share the slot of the row, whose own tag
    /// may be anything, so its tag is a number that happens to have this slot.
    pub(super) fn fence(&self, row: &str) -> String {
        format!("tg:{}:fence:{{{}}}:{row}", self.space, slot_tags()[usize::from(slot(row.as_bytes()))])
    }
}

/// For each slot the lowest number whose text lies in it.
fn slot_tags() -> &'static [u32] {
    static TAGS: OnceLock<Vec<u32>> = OnceLock::new();
    TAGS.get_or_init(|| {
        let mut tags = vec![u32::MAX; SLOTS];
        let mut missing = SLOTS;
        for number in 0.. {
            let tag = &mut tags[usize::from(slot(itoa::Buffer::new().format(number).as_bytes()))];
            if *tag == u32::MAX {
                *tag = number;
                missing -= 1;
            }
            if missing == 0 {
                break;
            }
        }
        tags
    })
}

/// The field of the live generation, and what the others of the view begin with.
pub(super) fn generations_field(view: &ViewId) -> String {
    format!("{view}:generations")
}

/// The view whose generations a field lists.
pub(super) fn view_of_generations(field: &str) -> Option<ViewId> {
    field.strip_suffix(":generations")?.parse().ok()
}

pub(super) fn publish_field(view: &ViewId) -> String {
    format!("{view}:publish")
}

/// The publication that changes rows in place, or did so last.
pub(super) fn writer_field(view: &ViewId) -> String {
    format!("{view}:writer")
}

pub(super) fn tag_field(view: &ViewId) -> String {
    format!("{view}:tag")
}

/// The features that are switched off.
pub(super) fn switches_field(view: &ViewId) -> String {
    format!("{view}:switches")
}

/// The revision of the switches.
pub(super) fn switched_field(view: &ViewId) -> String {
    format!("{view}:switched")
}

/// The slot of a key in a cluster.
pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let inside = &key[open + 1..];
        inside.iter().position(|&byte| byte == b'}').filter(|&length| length > 0).map(|length| &inside[..length])
    });
    crc16(tag.unwrap_or(key)) % SLOTS as u16
}

/// CRC-16/XMODEM, as Redis computes it.
fn crc16(bytes: &[u8]) -> u16 {
    const TABLE: [u16; 256] = {
        let mut table = [0u16; 256];
        let mut at = 0;
        while at < 256 {
            let mut crc = (at as u16) << 8;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
                bit += 1;
            }
            table[at] = crc;
            at += 1;
        }
        table
    };
    bytes.iter().fold(0, |crc, &byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

/// An instant as rows have it: RFC 3339, UTC, microseconds.
pub(super) fn instant_text(at: Instant) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

fn instant(bytes: &[u8]) -> Option<Instant> {
    let text = std::str::from_utf8(bytes).ok()?;
    DateTime::parse_from_rfc3339(text).ok().map(|at| at.to_utc())
}

/// A row from the answer to HGETALL; `None` when there is none.
pub(super) fn decode_row(value: Value) -> Result<Option<OnlineRow>, String> {
    let mut fields = match value {
        Value::Array(flat) => {
            let mut flat = flat.into_iter();
            std::iter::from_fn(move || Some((flat.next()?, flat.next()?))).collect::<Vec<_>>()
        }
        Value::Map(fields) => fields,
        Value::Nil => Vec::new(),
        other => return Err(format!("a row is answered as {other:?}")),
    }
    .into_iter()
    .peekable();
    if fields.peek().is_none() {
        return Ok(None);
    }
    let (mut event_timestamp, mut expires_at, mut features) = (None, None, Vec::new());
    for (name, value) in fields {
        let (name, value) = (text(name)?, text(value)?);
        match name.as_str() {
            EVENT_TIMESTAMP => event_timestamp = instant(value.as_bytes()),
            EXPIRES_AT => {
                expires_at = Some(instant(value.as_bytes()).ok_or_else(|| format!("`{EXPIRES_AT}` is no time"))?);
            }
            PUBLISH => {}
            _ => features.push((name, value)),
        }
    }
    let event_timestamp = event_timestamp.ok_or_else(|| format!("a row has no usable `{EVENT_TIMESTAMP}`"))?;
    Ok(Some(OnlineRow { event_timestamp, expires_at, features }))
}

pub(super) fn text(value: Value) -> Result<String, String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).map_err(|_| "a text is not UTF-8".to_owned()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Ok(text),
        Value::Int(number) => Ok(number.to_string()),
        Value::Okay => Ok("OK".to_owned()),
        other => Err(format!("a text is answered as {other:?}")),
    }
}

/// One entity in a chunk of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) entity_key: String,
    /// When Redis drops the row by itself, in milliseconds since 1970; `None` for never.
    pub(super) expires_ms: Option<i64>,
}

/// The milliseconds at which Redis may drop a row: never too early.
pub(super) fn expiry_ms(at: Instant) -> i64 {
    let ms = at.timestamp_millis();
    // Never for what lies beyond Redis's clock.
    if at.timestamp_subsec_micros().is_multiple_of(1_000) { ms } else { ms + 1 }
}

/// A chunk of an index: per entity the length of its key, its key, and its expiry (0 for never), in little-endian.
pub(super) fn encode_chunk<'a>(rows: impl Iterator<Item = (&'a str, Option<i64>)>) -> Vec<u8> {
    let mut chunk = Vec::new();
    for (entity_key, expires_ms) in rows {
        // Keys are far below 4 GiB: Redis takes none above 512 MiB.
        chunk.extend((entity_key.len() as u32).to_le_bytes());
        chunk.extend(entity_key.as_bytes());
        chunk.extend(expires_ms.unwrap_or(0).to_le_bytes());
    }
    chunk
}

/// The entities of a chunk; `None` when it is damaged.
pub(super) fn decode_chunk(mut bytes: &[u8]) -> Option<Vec<Listed>> {
    let mut listed = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let (expires, rest) = rest.split_first_chunk::<8>()?;
        let expires = i64::from_le_bytes(*expires);
        let entity_key = std::str::from_utf8(key).ok()?.to_owned();
        listed.push(Listed { entity_key, expires_ms: (expires != 0).then_some(expires) });
        bytes = rest;
    }
    Some(listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // From `CLUSTER KEYSLOT`.
        assert_eq!(slot(b"123456789"), 12_739);
        assert_eq!(slot(b"foo{hash_tag}"), slot(b"hash_tag"));
        assert_eq!(slot(b"foo{}{bar}"), crc16(b"foo{}{bar}") % 16_384);
    }

    #[test]
    fn keys_of_a_drill_can_be_those_of_no_project() {
        let id = DrillId::generate();
        let project = ProjectName::new("flights").unwrap();
        let (real, drill) = (Keys::new(project.clone()), Keys::of_drill(project, id));
        assert!(drill.is_of_drill() && !real.is_of_drill());
        assert_eq!(drill.live(), format!("tg:flights~drill-{id}:live"));
        assert!(ProjectName::new(format!("flights~drill-{id}")).is_err());
        let view: ViewId = "carrier_delays@v1".parse().unwrap();
        let row = drill.row_prefix(&view, 1);
        let all = [drill.owner(), drill.live(), drill.index(&view, 1), drill.care(&view), drill.fence(&row), row];
        assert!(all.iter().all(|key| key.starts_with(&format!("tg:flights~drill-{id}:"))), "{all:?}");
    }

    #[test]
    fn a_fence_lies_in_the_slot_of_its_row() {
        let keys = Keys::new("flights".parse().unwrap());
        let view = "a@v1".parse().unwrap();
        for entity in ["AA", "", "a{b}c", "{}", "a}b", "{", "}{", "{{x}}", "a{b", "é:{ü}"] {
            let row = format!("{}{entity}", keys.row_prefix(&view, 1));
            let fence = keys.fence(&row);
            assert_eq!(slot(row.as_bytes()), slot(fence.as_bytes()), "{entity}");
        }
    }

    #[test]
    fn a_chunk_is_read_as_it_was_written() {
        let listed = decode_chunk(&encode_chunk([("", None), ("é:b", Some(1_501))].into_iter())).unwrap();
        assert_eq!(listed[0], Listed { entity_key: String::new(), expires_ms: None });
        assert_eq!(listed[1], Listed { entity_key: "é:b".to_owned(), expires_ms: Some(1_501) });
        assert_eq!(decode_chunk(&[1, 0, 0]), None);
    }
}
