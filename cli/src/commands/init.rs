//! `tidegate init`: a small project to begin with.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tidegate_registry::ids::is_name;

use crate::context::Context;
use crate::error::{Exit, UserError};
use crate::example;
use crate::progress::note;

/// Make a folder with a small project to begin with
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The folder; made if need be, and must not hold a project yet
    dir: PathBuf,
    /// Copy the example project (delays of New York's flights) instead
    #[arg(long)]
    example: bool,
}

const FILES: [(&str, &str); 4] = [
    ("tidegate.yaml", include_str!("../../templates/init/tidegate.yaml")),
    ("orders.yaml", include_str!("../../templates/init/orders.yaml")),
    ("data/orders.csv", include_str!("../../templates/init/data/orders.csv")),
    (".gitignore", include_str!("../../templates/init/gitignore")),
];

/// Runs the command.
///
/// # Errors
/// When the folder already holds one of the files, or cannot be written.
pub async fn run(arguments: Arguments, _context: &Context) -> anyhow::Result<Exit> {
    let dir = &arguments.dir;
    if let Some((taken, _)) = FILES.iter().find(|(name, _)| dir.join(name).exists()) {
        return Err(UserError::new(format!("`{}` already has a `{taken}`", dir.display()))
            .hint("name a folder that does not exist yet")
            .into());
    }
    let shown = quoted(dir);
    if arguments.example {
        example::write_to(dir)?;
        note(format!(
            "wrote the example project; its README.md explains it\n\nnext:\n  cd {shown}\n  tidegate validate\n  tidegate apply\n  tidegate up"
        ));
        return Ok(Exit::Done);
    }
    let name = project_name(dir);
    for (file, content) in FILES {
        let path = dir.join(file);
        let parent = path.parent().unwrap_or(dir);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, content.replace("PROJECT", &name)))
            .with_context(|| format!("writing `{}`", path.display()))?;
        note(format!("wrote {}", path.display()));
    }
    note(format!(
        "\nnext:\n  cd {shown}\n  tidegate validate\n  tidegate preview customer_orders --interval 2026-01-08/2026-01-09\n  \
         tidegate apply\n  tidegate run orders_daily"
    ));
    Ok(Exit::Done)
}

/// The folder as a shell reads it.
fn quoted(dir: &Path) -> String {
    let text = dir.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-~+".contains(c);
    match text.chars().all(is_plain) && !text.starts_with(['-', '~']) {
        true => text,
        false if text.starts_with('-') => format!("'./{}'", text.replace('\'', r"'\''")),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// The folder's name where it can be a project's name, else as near as possible.
fn project_name(dir: &Path) -> String {
    let folder = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let name = folder.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(63).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_lowercase()).to_owned();
    if is_name(&name) { name } else { "features".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_steps_can_be_pasted_into_a_shell() {
        for (folder, shown) in
            [("shop", "shop"), ("a/b.c", "a/b.c"), ("my shop", "'my shop'"), ("-x", "'./-x'"), ("it's", r"'it'\''s'")]
        {
            assert_eq!(quoted(Path::new(folder)), shown);
        }
    }

    #[test]
    fn a_folder_gives_its_name_to_the_project() {
        for (folder, name) in [("/tmp/shop", "shop"), ("My Shop-2", "my_shop_2"), ("42", "features"), ("/", "features")]
        {
            assert_eq!(project_name(Path::new(folder)), name, "{folder}");
        }
    }
}
