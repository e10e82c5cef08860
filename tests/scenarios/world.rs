//! A world to run the real binary in: a temporary folder, a clean environment, and a transcript of what was said.
//!
//! Transcripts are compared as a whole, so what differs from run to run is replaced: ids by their order of appearance,
//! the folder, the milliseconds that things took. Project time stands still: the example's clock is slowed down until
//! nothing of it is left.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use regex::Regex;
use tempfile::TempDir;

/// Slow enough for no microsecond to pass during a test.
const STILL: &str = "0.000000000001";

/// See the module.
pub(crate) struct World {
    dir: TempDir,
    /// Where commands are run.
    pub(crate) folder: PathBuf,
    transcript: String,
    ids: Vec<String>,
    /// Variables that commands find in their environment beside the usual ones.
    pub(crate) variables: Vec<(&'static str, &'static str)>,
}

impl World {
    /// An empty folder.
    pub(crate) fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().canonicalize().unwrap().join("work");
        fs::create_dir(&folder).unwrap();
        fs::create_dir(folder.parent().unwrap().join("home")).unwrap();
        Self { dir, folder, transcript: String::new(), ids: Vec::new(), variables: Vec::new() }
    }

    /// A copy of the example project whose runs come one after another, so that publish numbers are the same each time.
    pub(crate) fn example() -> Self {
        let world = Self::empty();
        let made = world.command(&["init", "--example", "."]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        world.edit("flights_daily.yaml", |text| text.replace("max_active_runs: 4", "max_active_runs: 1"));
        world
    }

    /// The example project, validated and applied.
    pub(crate) fn applied() -> Self {
        let world = Self::example();
        let applied = world.command(&["apply", "--yes"]).output().unwrap();
        assert!(applied.status.success(), "{applied:?}");
        world
    }

    /// Another world with the same files.
    pub(crate) fn twin(&self) -> Self {
        let twin = Self::empty();
        for (path, content) in files(&self.folder) {
            let path = twin.folder.join(path.strip_prefix(&self.folder).unwrap());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        twin
    }

    /// Changes a file of the project.
    pub(crate) fn edit(&self, file: &str, change: impl FnOnce(String) -> String) {
        let path = self.folder.join(file);
        let before = fs::read_to_string(&path).unwrap();
        let after = change(before.clone());
        assert_ne!(before, after, "{file} did not change");
        fs::write(path, after).unwrap();
    }

    /// Copies a file of the project onto another.
    pub(crate) fn copy(&self, from: &str, to: &str) {
        fs::copy(self.folder.join(from), self.folder.join(to)).unwrap();
    }

    /// A command in this world that has not been started.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.dir.path().join("home"))
            .env("USER", "tester")
            .env("TIDEGATE_CLOCK_SPEED", STILL)
            // One task after the other: what else had been computed when a check stopped a run does not vary.
            .env("TIDEGATE_SLOTS", "1")
            .envs(self.variables.iter().copied())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command, adds it to the transcript and returns what it wrote to standard output.
    pub(crate) fn run(&mut self, line: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = self.command(&arguments).output().unwrap();
        self.note(line, &output);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that shall succeed and is not part of the story.
    pub(crate) fn quietly(&self, line: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = self.command(&arguments).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The JSON that a command prints.
    pub(crate) fn json(&self, line: &str) -> serde_json::Value {
        let arguments: Vec<&str> = line.split_whitespace().chain(["--format", "json"]).collect();
        let output = self.command(&arguments).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{line}: {error}: {output:?}"))
    }

    fn note(&mut self, line: &str, output: &Output) {
        let _ = writeln!(self.transcript, "$ tidegate {line}");
        self.transcript.push_str(&String::from_utf8_lossy(&output.stdout));
        if !output.stderr.is_empty() {
            let _ = write!(self.transcript, "--- standard error\n{}", String::from_utf8_lossy(&output.stderr));
        }
        let _ = writeln!(self.transcript, "--- exit code {}\n", output.status.code().unwrap());
    }

    /// Everything that was said, with what differs from run to run replaced.
    pub(crate) fn transcript(mut self) -> String {
        let folder = self.folder.display().to_string();
        let text = std::mem::take(&mut self.transcript).replace(&folder, "[FOLDER]");
        let text = self.with_named_ids(&text);
        let text = without_chance(&text);
        text.lines().filter(|line| !is_halfway(line)).map(|line| line.trim_end().to_owned() + "\n").collect()
    }

    fn with_named_ids(&mut self, text: &str) -> String {
        static ID: LazyLock<Regex> =
            LazyLock::new(|| Regex::new("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").unwrap());
        ID.replace_all(text, |found: &regex::Captures<'_>| {
            let id = &found[0];
            let place = self.ids.iter().position(|known| known == id).unwrap_or_else(|| {
                self.ids.push(id.to_owned());
                self.ids.len() - 1
            });
            format!("[id {}]", place + 1)
        })
        .into_owned()
    }
}

/// Replaces what depends on the number of processors, which decides in what order floats are added up, and leaves out
/// which steps a waiting command happened to see.
fn without_chance(text: &str) -> String {
    static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        let rule = |pattern, by| (Regex::new(pattern).unwrap(), by);
        vec![
            // How wide the column is depends on the machine's name.
            rule(r#"tester@[^\s",]+ {2,}"#, "tester@[host]  "),
            rule(r#"worker [^\s",]+:\d+:[^\s",]+ {2,}"#, "worker [process]  "),
            rule("ACTOR {3,}", "ACTOR  "),
            rule(r#"tester@[^\s",]+"#, "tester@[host]"),
            rule(r"\b[0-9a-f]{64}\b", "[hash]"),
            rule("head [0-9a-f]{12}…", "head [hash]…"),
            rule(r#""(recorded_at|written_at|due_at)": ?"[^"]+""#, r#""$1":"[now]""#),
            rule(r"127\.0\.0\.1:\d+", "127.0.0.1:[port]"),
            rule(r"took( +)[0-9.]+ s", "took$1[n] s"),
            rule(r"\d+\.\d\d s {2,}", "[n] s  "),
            rule(
                r#""((?:took|commit|online|plan|check|validate|whole|copy|remove|proven|slowest)_ms)": ?\d+"#,
                r#""$1": [n]"#,
            ),
            rule(r#""duration_seconds": ?[0-9.e-]+"#, r#""duration_seconds":[n]"#),
            rule(r"\bin \d+\.\d\d s\b", "in [n] s"),
            rule(r#"("(?:before|after|(?:mean|max)_(?:absolute|relative))": -?\d+\.\d{1,4})\d*"#, "$1"),
            rule(r#""digest": "[0-9a-f]{32}""#, r#""digest": "[digest]""#),
            rule(r"(?m)  [0-9a-f]{32}$", "  [digest]"),
            rule(r"\d+ bytes", "[n] bytes"),
            rule(r"\bin \d+ ms\b", "in [n] ms"),
            rule(r#"("[a-z_]+@v\d+"): \d+"#, "$1: [n]"),
            rule(r#""bytes": ?\d+"#, r#""bytes": [n]"#),
            rule(r"\d+\.\d\d s\b", "[n] s"),
            rule(r"(?m)^run \[id \d+\] is (waiting|queued|running|publishing)\n", ""),
        ]
    });
    RULES.iter().fold(text.to_owned(), |text, (pattern, by)| pattern.replace_all(&text, *by).into_owned())
}

/// Whether a line of progress is not the last one: which of them a command comes to tell is chance.
fn is_halfway(line: &str) -> bool {
    static PROGRESS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^(\d+) of (\d+) done").unwrap());
    PROGRESS.captures(line).is_some_and(|found| found[1] != found[2])
}

/// Waits until `holds`, for at most a minute.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not come true within a minute");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Every file below `folder`, with its content.
pub(crate) fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((path.clone(), fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}
