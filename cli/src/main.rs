//! The `tidegate` command: see the library of the same name.

use std::process::ExitCode;

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
    fail::FailScenario::setup()
}
