//! The `tidegate` command: see the library of the same name.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _fail_points = die_at_fail_points();
    tidegate::main(std::env::args_os())
}

/// Arms the fail points that the variable `FAILPOINTS` names, as in `commit.after=2*off->panic`. One that says `panic`
/// ends the process at that very instruction, without destructors or hand-backs, as a kill or a loss of power would.
#[cfg(feature = "failpoints")]
fn die_at_fail_points() -> fail::FailScenario<'static> {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if panic.payload_as_str().is_some_and(|message| message.starts_with("failpoint ")) {
            std::process::abort();
        }
    }));
    let scenario = fail::FailScenario::setup();
    stand_still_at_a_fail_point();
    scenario
}

/// Makes the thread that passes a fail point say so and stand still for some seconds, long enough to be frozen right there:
/// `FAILPOINT_HALT` names the point and how often it is passed before, as in `commit.after=4`.
#[cfg(feature = "failpoints")]
fn stand_still_at_a_fail_point() {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[expect(clippy::disallowed_methods, reason = "beside `FAILPOINTS`, which is read by others")]
    let Ok(halt) = std::env::var("FAILPOINT_HALT") else { return };
    let Some((point, before)) = halt.split_once('=') else { return };
    let (name, left) = (point.to_owned(), AtomicU32::new(before.parse().unwrap_or(0)));
    let armed = fail::cfg_callback(point, move || {
        // Below 0 it wraps around and never comes back to 0.
        if left.fetch_sub(1, Ordering::SeqCst) == 0 {
            let _ = writeln!(std::io::stderr(), "standing still at {name}");
            std::thread::sleep(std::time::Duration::from_secs(5));
        }
    });
    debug_assert!(armed.is_ok(), "a callback has no syntax that could be wrong");
}
