//! What must happen in one step, as Lua that Redis runs alone.
//!
//! All scripts of generations work on one key, the project's `live` hash, so they run in a cluster too. The field
//! `{view}:generations` has a line per generation: its number, its state, its rows, when it was superseded (milliseconds by
//! Redis's clock), which servers it was verified on, and the token of the attempt that writes it; `-` for nothing.
//!
//! | state | means |
//! |---|---|
//! | `writing` | rows go in, by whoever holds the token |
//! | `finished` | complete, never live yet |
//! | `published` | live, or was so |
//! | `removing` | its rows are being deleted; it can never go live again |
//! | `removed` | its rows are deleted; remembered for a day, so that what a frozen worker still writes is found |

use redis::{Cmd, Value};
use tidegate_registry::ids::ViewId;
use tidegate_registry::switches::ViewSwitches;

use super::connection::Connections;
use super::errors::strange;
use super::keys::{Keys, generations_field, text};
use crate::online::{CutOver, OnlineError, Result};

/// Common to the scripts of generations.
const GENERATIONS: &str = r"
local live = KEYS[1]
local function load(view)
  local lines = redis.call('HGET', live, view .. ':generations') or ''
  local list, by = {}, {}
  for g, state, rows, superseded, servers, token in string.gmatch(lines, '(%S+) (%S+) (%S+) (%S+) (%S+) (%S+)\n') do
    local entry = {g = g, state = state, rows = rows, superseded = superseded, servers = servers, token = token}
    list[#list + 1] = entry
    by[g] = entry
  end
  return list, by
end
local function save(view, list)
  local lines = {}
  for _, e in ipairs(list) do
    lines[#lines + 1] = table.concat({e.g, e.state, e.rows, e.superseded, e.servers, e.token}, ' ') .. '\n'
  end
  if #lines == 0 then
    redis.call('HDEL', live, view .. ':generations')
  else
    redis.call('HSET', live, view .. ':generations', table.concat(lines))
  end
end
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
";

/// view, generation, token → `begun`, `published`, or `removing` and the live publish number.
const BEGIN: &str = r"
local view, g, token = ARGV[1], ARGV[2], ARGV[3]
local list, by = load(view)
local entry = by[g]
if entry and entry.state == 'published' then return {'published'} end
if entry and (entry.state == 'removing' or entry.state == 'removed') then
  local number = redis.call('HGET', live, view .. ':publish')
  if number and tonumber(number) > tonumber(g) then return {'removing', number} end
  if entry.state == 'removing' then return {'removing', '0'} end
end
if not entry then
  entry = {g = g}
  list[#list + 1] = entry
end
entry.state, entry.rows, entry.superseded, entry.servers, entry.token = 'writing', '-', '-', '-', token
save(view, list)
return {'begun'}
";

/// view, generation, token, rows, servers → `finished`, or the state that forbids it.
const FINISH: &str = r"
local view, g, token, rows, servers = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local list, by = load(view)
local entry = by[g]
if not entry then return {'none'} end
if entry.state == 'writing' then
  if entry.token ~= token then return {'taken'} end
  entry.state = 'finished'
  entry.token = '-'
elseif entry.state ~= 'finished' and entry.state ~= 'published' then
  return {entry.state}
end
entry.rows, entry.servers = rows, servers
save(view, list)
return {'finished'}
";

/// Per view: view, generation, publish number, tag, defaults → `done`; `superseded`, position, live number; or `state`, position,
/// state.
const CUT_OVER: &str = r"
local steps = #ARGV / 5
for i = 0, steps - 1 do
  local view, g, number = ARGV[5 * i + 1], ARGV[5 * i + 2], ARGV[5 * i + 3]
  local at = redis.call('HMGET', live, view, view .. ':publish')
  if not (at[1] == g and at[2] == number) then
    if at[2] and tonumber(at[2]) >= tonumber(number) then return {'superseded', tostring(i), at[2]} end
    local _, by = load(view)
    local entry = by[g]
    local state = entry and entry.state or 'none'
    if state ~= 'finished' and state ~= 'published' then return {'state', tostring(i), state} end
  end
end
for i = 0, steps - 1 do
  local view, g, number, tag, defaults = unpack(ARGV, 5 * i + 1, 5 * i + 5)
  local at = redis.call('HMGET', live, view, view .. ':publish')
  if not (at[1] == g and at[2] == number) then
    local list, by = load(view)
    if at[1] and at[1] ~= g and by[at[1]] then by[at[1]].superseded = string.format('%.0f', now()) end
    by[g].state, by[g].superseded = 'published', '-'
    save(view, list)
    redis.call('HSET', live, view, g, view .. ':publish', number, view .. ':tag', tag, view .. ':defaults', defaults)
  end
end
return {'done'}
";

/// view, keep, least age in ms, dead below → the generations to remove, newest first: number, and `1` when it was decided
/// now, `0` when earlier, `-` when it is removed already and only to be looked at again.
const DOOM: &str = r"
local view, keep, age_min, dead_below = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local list = load(view)
local current = redis.call('HGET', live, view)
local at = now()
table.sort(list, function(a, b)
  local x, y = tonumber(a.superseded) or math.huge, tonumber(b.superseded) or math.huge
  if x ~= y then return x > y end
  return tonumber(a.g) > tonumber(b.g)
end)
local superseded, doomed, kept = 0, {}, {}
for _, e in ipairs(list) do
  local keeping = true
  if e.g ~= current then
    if e.state == 'removing' then
      doomed[#doomed + 1] = e.g
      doomed[#doomed + 1] = '0'
    elseif e.state == 'removed' then
      if at - tonumber(e.superseded) > 86400000 then keeping = false end
      doomed[#doomed + 1] = e.g
      doomed[#doomed + 1] = '-'
    else
      local unneeded
      if e.state == 'published' and e.superseded ~= '-' then
        superseded = superseded + 1
        unneeded = superseded > keep and at - tonumber(e.superseded) >= age_min
      else
        unneeded = tonumber(e.g) < dead_below
      end
      if unneeded then
        e.state, e.token = 'removing', '-'
        doomed[#doomed + 1] = e.g
        doomed[#doomed + 1] = '1'
      end
    end
  end
  if keeping then kept[#kept + 1] = e end
end
save(view, kept)
return doomed
";

/// view, generation → nothing: its rows are gone.
const REMOVED: &str = r"
local view, g = ARGV[1], ARGV[2]
local list, by = load(view)
if by[g] and by[g].state == 'removing' then
  by[g].state, by[g].superseded = 'removed', string.format('%.0f', now())
  save(view, list)
end
return {'done'}
";

/// view, generation, publish number → `begun`, `done` (it is live under this number already), `superseded` and the number
/// that is in the way, or `other` when another generation is live or none.
const UPSERT: &str = r"
local view, g, number = ARGV[1], ARGV[2], ARGV[3]
local at = redis.call('HMGET', live, view, view .. ':publish', view .. ':writer')
if at[1] ~= g then
  if at[2] and tonumber(at[2]) >= tonumber(number) then return {'superseded', at[2]} end
  return {'other'}
end
if at[2] == number then return {'done'} end
if tonumber(at[2]) > tonumber(number) then return {'superseded', at[2]} end
if at[3] and tonumber(at[3]) > tonumber(number) then return {'superseded', at[3]} end
-- Somebody began to change rows and never came to cut over: nobody knows what they are like.
if at[3] and tonumber(at[3]) > tonumber(at[2]) and at[3] ~= number then return {'other'} end
redis.call('HSET', live, view .. ':writer', number)
return {'begun'}
";

/// view, revision, switches → the revision that is there now.
const SWITCH: &str = r"
local view, revision = ARGV[1], ARGV[2]
local at = redis.call('HGET', live, view .. ':switched')
if at and tonumber(at) >= tonumber(revision) then return {at} end
redis.call('HSET', live, view .. ':switches', ARGV[3], view .. ':switched', revision)
return {revision}
";

/// Writes a whole row in place: the publish number, the generation, the row's expiry in ms (0 for never; -1 to delete the
/// row), its fields. Keys: the row, its fence. Answers 1 when a later publication wrote it already, else 0.
///
/// A row that was never written in place has no number of its own: its generation's is meant.
pub(super) const WRITE_ROW: &str = r"
local row, fence, number, expires = KEYS[1], KEYS[2], ARGV[1], ARGV[3]
local theirs = tonumber(redis.call('HGET', row, '_publish') or redis.call('GET', fence) or ARGV[2])
if theirs > tonumber(number) then return 1 end
redis.call('DEL', row)
if expires == '-1' then
  redis.call('SET', fence, number, 'EX', 86400)
else
  redis.call('HSET', row, '_publish', number, unpack(ARGV, 4))
  if expires ~= '0' then redis.call('PEXPIREAT', row, expires) end
end
return 0
";

/// Replaces a row whole: its expiry in ms (0 for never), then its fields.
pub(super) const REPLACE: &str = r"
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
if ARGV[1] ~= '0' then redis.call('PEXPIREAT', KEYS[1], ARGV[1]) end
return 1
";

/// Owner, how long in ms → 1 when the key is the owner's now.
pub(super) const CLAIM_CARE: &str = r"
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
";

/// One generation's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) generation: u64,
    pub(super) state: String,
    pub(super) rows: Option<u64>,
    pub(super) servers: String,
    pub(super) token: String,
}

/// The generations of a view from their field.
pub(super) fn parse_entries(lines: &str) -> Result<Vec<Entry>> {
    let entry = |line: &str| -> Option<Entry> {
        let mut words = line.split(' ');
        Some(Entry {
            generation: words.next()?.parse().ok()?,
            state: words.next()?.to_owned(),
            rows: words.next()?.parse().ok(),
            servers: {
                words.next()?;
                words.next()?.to_owned()
            },
            token: words.next()?.to_owned(),
        })
    };
    let entries = lines.lines().map(|line| entry(line).ok_or_else(|| strange("a list of generations is damaged")));
    entries.collect()
}

/// What a begin was answered.
pub(super) enum BeginAnswer {
    Begun,
    Published,
    /// Being removed, or removed; the number that is live.
    Removing(u64),
}

/// What an upsert's begin was answered.
pub(super) enum UpsertAnswer {
    Begun,
    Done,
    Superseded(u64),
    Other,
}

async fn run(
    connections: &Connections,
    keys: &Keys,
    doing: &'static str,
    script: &str,
    arguments: &[String],
) -> Result<Vec<String>> {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(format!("{GENERATIONS}{script}")).arg(1).arg(keys.live()).arg(arguments);
    match connections.query(doing, &cmd).await? {
        Value::Array(values) => values.into_iter().map(|value| text(value).map_err(strange)).collect(),
        other => Err(strange(format!("a script answered {other:?}"))),
    }
}

fn first(answer: &[String]) -> &str {
    answer.first().map_or("", String::as_str)
}

fn number(answer: &[String], position: usize) -> Result<u64> {
    answer.get(position).and_then(|text| text.parse().ok()).ok_or_else(|| strange("a script gave no number"))
}

fn not_foreseen(answer: &[String]) -> OnlineError {
    strange(format!("a script answered {answer:?}"))
}

pub(super) async fn begin(
    connections: &Connections,
    keys: &Keys,
    view: &ViewId,
    generation: u64,
    token: &str,
) -> Result<BeginAnswer> {
    let arguments = [view.to_string(), generation.to_string(), token.to_owned()];
    let answer = run(connections, keys, "beginning a generation in", BEGIN, &arguments).await?;
    match first(&answer) {
        "begun" => Ok(BeginAnswer::Begun),
        "published" => Ok(BeginAnswer::Published),
        "removing" => Ok(BeginAnswer::Removing(number(&answer, 1)?)),
        _ => Err(not_foreseen(&answer)),
    }
}

/// The state that forbids it, or `None` when it is finished.
pub(super) async fn finish(
    connections: &Connections,
    keys: &Keys,
    view: &ViewId,
    entry: &Entry,
) -> Result<Option<String>> {
    let rows = entry.rows.map_or_else(|| "-".to_owned(), |rows| rows.to_string());
    let arguments = [view.to_string(), entry.generation.to_string(), entry.token.clone(), rows, entry.servers.clone()];
    let answer = run(connections, keys, "finishing a generation in", FINISH, &arguments).await?;
    Ok(Some(first(&answer).to_owned()).filter(|state| state != "finished"))
}

pub(super) async fn cut_over(connections: &Connections, keys: &Keys, steps: &[CutOver]) -> Result<()> {
    let arguments: Vec<String> = steps
        .iter()
        .flat_map(|step| {
            [
                step.view.to_string(),
                step.generation.to_string(),
                step.publish_number.to_string(),
                step.tag.clone(),
                step.defaults.clone(),
            ]
        })
        .collect();
    let answer = run(connections, keys, "cutting over", CUT_OVER, &arguments).await?;
    if first(&answer) == "done" {
        return Ok(());
    }
    let step = usize::try_from(number(&answer, 1)?).ok().and_then(|position| steps.get(position));
    let step = step.ok_or_else(|| not_foreseen(&answer))?;
    match first(&answer) {
        "superseded" => Err(OnlineError::Superseded {
            view: step.view.clone(),
            live: number(&answer, 2)?,
            asked: step.publish_number,
        }),
        "state" => {
            let problem = if answer.get(2).is_some_and(|state| state == "writing") {
                "is not finished"
            } else {
                "does not exist"
            };
            Err(super::refused(&step.view, step.generation, problem))
        }
        _ => Err(not_foreseen(&answer)),
    }
}

/// The revision that is there now.
pub(super) async fn switch(
    connections: &Connections,
    keys: &Keys,
    view: &ViewId,
    switches: &ViewSwitches,
) -> Result<u64> {
    let arguments = [view.to_string(), switches.revision.to_string(), switches.to_json()];
    number(&run(connections, keys, "switching features in", SWITCH, &arguments).await?, 0)
}

/// A generation to remove.
pub(super) struct Doomed {
    pub(super) generation: u64,
    /// Whether it is removed already, and only looked at again.
    pub(super) removed: bool,
}

pub(super) async fn doom(
    connections: &Connections,
    keys: &Keys,
    view: &ViewId,
    keep: u32,
    age_min_ms: u128,
    dead_below: u64,
) -> Result<Vec<Doomed>> {
    let arguments = [view.to_string(), keep.to_string(), age_min_ms.to_string(), dead_below.to_string()];
    let answer = run(connections, keys, "removing generations from", DOOM, &arguments).await?;
    let doomed = answer
        .chunks(2)
        .map(|pair| Ok(Doomed { generation: number(pair, 0)?, removed: pair.get(1).is_some_and(|when| when == "-") }));
    doomed.collect()
}

pub(super) async fn removed(connections: &Connections, keys: &Keys, view: &ViewId, generation: u64) -> Result<()> {
    let arguments = [view.to_string(), generation.to_string()];
    run(connections, keys, "removing generations from", REMOVED, &arguments).await.map(drop)
}

pub(super) async fn upsert(
    connections: &Connections,
    keys: &Keys,
    view: &ViewId,
    generation: u64,
    publish_number: u64,
) -> Result<UpsertAnswer> {
    let arguments = [view.to_string(), generation.to_string(), publish_number.to_string()];
    let answer = run(connections, keys, "beginning to change", UPSERT, &arguments).await?;
    Ok(match first(&answer) {
        "begun" => UpsertAnswer::Begun,
        "done" => UpsertAnswer::Done,
        "superseded" => UpsertAnswer::Superseded(number(&answer, 1)?),
        "other" => UpsertAnswer::Other,
        _ => return Err(not_foreseen(&answer)),
    })
}

/// The generations of a view.
pub(super) async fn entries(connections: &Connections, keys: &Keys, view: &ViewId) -> Result<Vec<Entry>> {
    let mut cmd = Cmd::new();
    cmd.arg("HGET").arg(keys.live()).arg(generations_field(view));
    match connections.query("reading", &cmd).await? {
        Value::Nil => Ok(Vec::new()),
        value => parse_entries(&text(value).map_err(strange)?),
    }
}

/// One generation of a view.
pub(super) async fn entry(
    connections: &Connections,
    keys: &Keys,
    view: &ViewId,
    generation: u64,
) -> Result<Option<Entry>> {
    Ok(entries(connections, keys, view).await?.into_iter().find(|entry| entry.generation == generation))
}
