//! Who this process is, and which processes of this machine are gone.
//!
//! A lease names its owner as `host:pid:scope-start`. After a crash, the next process on the same machine can see that the
//! owner is dead and need not wait for the lease to run out. `start` tells a process from a later one with its number, and
//! `scope` says where numbers mean the same: machines may share a name, and containers of one machine do not share
//! processes. Who guesses wrong takes work away from the living.

use std::fs;

/// This process as a lease owner.
pub fn owner() -> String {
    let pid = std::process::id();
    let start = scope().zip(started(pid)).map_or_else(fallback_start, |(scope, start)| format!("{scope}-{start}"));
    format!("{}:{pid}:{start}", host())
}

/// Whether `owner` is a process that this one could see, and that certainly no longer runs.
pub fn is_dead(owner: &str) -> bool {
    let mut parts = owner.rsplitn(3, ':');
    let (Some(start), Some(pid), Some(owner_host)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let (Ok(pid), Some((owner_scope, start))) = (pid.parse::<u32>(), start.rsplit_once('-')) else { return false };
    let seen_from_here = owner_host == host() && scope().is_some_and(|scope| scope == owner_scope);
    seen_from_here && can_see_processes() && started(pid).is_none_or(|now| now != start)
}

/// Which processes this one sees: those since this start of this machine, in its own process namespace (a container has
/// one). `None` where the system does not say.
fn scope() -> Option<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
    let namespace: String = namespace.to_str()?.chars().filter(char::is_ascii_digit).collect();
    Some(format!("{}-{namespace}", boot.trim().get(..8)?))
}

/// The machine's name.
pub fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim().replace(':', "-");
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// When the process `pid` started, in the kernel's own ticks since boot; `None` when there is no such process.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, and may itself hold spaces and parentheses.
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?;
    // A zombie holds nothing any more; it only waits for its parent to look.
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

/// Systems without `/proc` cannot tell: there, leases run out by themselves.
fn can_see_processes() -> bool {
    started(std::process::id()).is_some()
}

fn fallback_start() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another process, as an owner.
    fn owner_of(pid: u32, start: &str) -> String {
        format!("{}:{pid}:{}-{start}", host(), scope().unwrap())
    }

    #[test]
    fn this_process_lives_and_one_that_ended_is_dead() {
        assert!(!is_dead(&owner()));
        if can_see_processes() && scope().is_some() {
            let mut child = std::process::Command::new("true").spawn().unwrap();
            let started = started(child.id());
            let gone = owner_of(child.id(), &started.unwrap_or_else(|| "1".to_owned()));
            child.wait().unwrap();
            assert!(is_dead(&gone), "{gone}");
            let reused = owner_of(std::process::id(), "1");
            assert!(is_dead(&reused), "a number that was used again is another process");
        }
    }

    #[test]
    fn processes_of_other_machines_are_not_ours_to_judge() {
        for owner in ["elsewhere:1:1", "nonsense", "a:b:c", ""] {
            assert!(!is_dead(owner), "{owner}");
        }
        // Another machine with our name, this one before it was started anew, or another container on it.
        for scope in ["00000000-4026531836", "x", ""] {
            let owner = format!("{}:{}:{scope}-1", host(), std::process::id());
            assert!(!is_dead(&owner), "{owner}");
        }
    }
}
