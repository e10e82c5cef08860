//! What only all definitions together can tell: which table each name in SQL means, circles, the order of views, and
//! the fingerprints that follow from them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::str::FromStr;

use super::dags::ParsedDag;
use super::{Catalog, ParsedViews};
use crate::definitions::read::nearest;
use crate::definitions::sql::{self, NamedTable};
use crate::diagnostics::{Diagnostic, Origin, ids};
use crate::fingerprint;
use crate::ids::{DagName, SourceName, ViewId};
use crate::model::{Dag, FeatureView, Output, Project, Rule, Table, TableRef};

/// For each reader, what it reads and where it says so first.
type Edges<T> = Vec<(T, Vec<(T, Origin)>)>;

pub(super) fn finish(
    project: &mut Project,
    parsed: &ParsedViews,
    dags: Vec<ParsedDag>,
    catalog: &Catalog,
    out: &mut Vec<Diagnostic>,
) {
    let mut edges: Edges<ViewId> = Vec::new();
    let mut broken: HashSet<ViewId> = project.views.keys().filter(|id| !parsed.contains_key(*id)).cloned().collect();
    for (id, query) in parsed {
        let Some(view) = project.views.get_mut(id) else { continue };
        let mut reads: Vec<TableRef> = Vec::new();
        let mut seen: HashSet<String> = HashSet::new();
        let mut parents: Vec<(ViewId, Origin)> = Vec::new();
        for named in &query.tables {
            let Some(table) = resolve(named, catalog, out) else {
                broken.insert(id.clone());
                continue;
            };
            if let Table::State(parent) | Table::History(parent) = &table {
                parents.push((parent.clone(), named.origin.clone()));
            }
            let name = named.parts.join(".");
            if seen.insert(name.clone()) {
                reads.push(TableRef { name, table });
            }
        }
        view.reads = reads;
        for check in &view.checks {
            let Some(table) = check.rule.other_table() else { continue };
            if let Table::State(parent) | Table::History(parent) = table {
                parents.push((parent.clone(), check.origin.clone()));
            }
            if !view.checked_against.contains(table) {
                view.checked_against.push(table.clone());
            }
        }
        edges.push((id.clone(), parents));
    }
    for view in project.views.values() {
        for check in &view.checks {
            if let Rule::Sql { query } = &check.rule
                && let Some(query) = sql::parse(query, out)
            {
                check_tables(view, &query.tables, catalog, out);
            }
        }
    }
    let (order, circles) = order_of(&edges);
    for circle in &circles {
        out.push(circle_found(ids::VIEW_CYCLE, "feature views read each other in a circle", circle));
    }
    fingerprints(project, parsed, &order);
    drop_broken(project, broken, &order);
    finish_dags(project, dags, out);
}

/// Takes out the views that have a mistake, stand in a circle, or read something that has been taken out.
fn drop_broken(project: &mut Project, mut broken: HashSet<ViewId>, order: &[ViewId]) {
    for id in order {
        let Some(view) = project.views.get(id) else { continue };
        let is_whole = view.tables().all(|table| match table {
            Table::Source(source) => project.sources.contains_key(source),
            Table::State(other) | Table::History(other) => project.views.contains_key(other) && !broken.contains(other),
        });
        if !is_whole {
            broken.insert(id.clone());
        }
    }
    let ordered: HashSet<&ViewId> = order.iter().collect();
    project.views.retain(|id, _| ordered.contains(id) && !broken.contains(id));
}

/// What a table's name means; reports when it means nothing.
fn resolve(named: &NamedTable, catalog: &Catalog, out: &mut Vec<Diagnostic>) -> Option<Table> {
    let (history, name) = match named.parts.as_slice() {
        [name] => (false, name),
        [schema, name] if schema == "history" => (true, name),
        parts => {
            out.push(
                unknown_table(named, &parts.join("."))
                    .with_help("write a source's or a view's name alone, or `history.name` for all rows of a view"),
            );
            return None;
        }
    };
    if let Some(view) = view_named(name, catalog) {
        return Some(if history { Table::History(view) } else { Table::State(view) });
    }
    if catalog.sources.contains_key(name) {
        if history {
            out.push(
                unknown_table(named, &format!("history.{name}"))
                    .with_help(format!("`{name}` is a source, which has no history here: write `{name}`")),
            );
            return None;
        }
        return SourceName::new(name.clone()).ok().map(Table::Source);
    }
    out.push(unknown_table(named, &named.parts.join(".")).with_help(suggest_table(name, catalog)));
    None
}

/// The version of a view that `name` or `name@vN` means.
pub(super) fn view_named(name: &str, catalog: &Catalog) -> Option<ViewId> {
    if !name.contains('@') {
        return catalog.highest(name);
    }
    let id = ViewId::from_str(name).ok()?;
    catalog.views.get(id.name.as_str())?.contains_key(&id.version).then_some(id)
}

fn unknown_table(named: &NamedTable, name: &str) -> Diagnostic {
    Diagnostic::error(ids::UNKNOWN_TABLE, named.origin.clone(), format!("there is no table `{name}`"))
        .with_label("no source or feature view with this name")
}

pub(super) fn suggest_table(name: &str, catalog: &Catalog) -> String {
    let bare = name.split('@').next().unwrap_or_default();
    if let Some(versions) = catalog.views.get(bare) {
        let list = versions.keys().map(|version| format!("`\"{bare}@v{version}\"`")).collect::<Vec<_>>().join(", ");
        return format!("choose from {list}");
    }
    let known = catalog.sources.keys().chain(catalog.views.keys()).map(String::as_str);
    nearest(bare, known).map_or_else(
        || "add it to `sources:`, or name a source or a feature view that is there".to_owned(),
        |near| format!("did you mean `{near}`?"),
    )
}

/// A check sees its view's staged rows and the sources that the view reads, which are all that the run has pinned for it.
fn check_tables(view: &FeatureView, tables: &[NamedTable], catalog: &Catalog, out: &mut Vec<Diagnostic>) {
    let id = &view.id;
    let is_self = |named: &&NamedTable| matches!(named.parts.as_slice(), [name] if *name == id.name.as_str() || *name == id.to_string());
    for named in tables.iter().filter(|named| !is_self(named)) {
        let (what, label) = match resolve(named, catalog, out) {
            None => continue,
            Some(Table::Source(source)) if view.source_reads().any(|read| *read == source) => continue,
            Some(Table::Source(source)) => (format!("source `{source}`"), "the view itself does not read it"),
            Some(Table::State(other) | Table::History(other)) => {
                (format!("feature view `{other}`"), "not the view that is checked")
            }
        };
        out.push(
            Diagnostic::error(
                ids::CHECK_READS_OTHER,
                named.origin.clone(),
                format!("a check of `{}` reads {what}", id.name),
            )
            .with_label(label)
            .with_help(format!(
                "a check may name `{}` (its staged rows) and the sources that the view reads: join what it needs in the view",
                id.name
            )),
        );
    }
}

/// The nodes so that each comes after what it reads, and the circles that prevent it for the rest.
///
/// A circle is the list of its members, each with the place where it names the next.
fn order_of<T: Clone + Eq + std::hash::Hash>(edges: &Edges<T>) -> (Vec<T>, Vec<Vec<(T, Origin)>>) {
    let index: HashMap<&T, usize> = edges.iter().enumerate().map(|(at, (node, _))| (node, at)).collect();
    let mut waits: Vec<usize> = vec![0; edges.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); edges.len()];
    let mut reads: Vec<Vec<(usize, &Origin)>> = vec![Vec::new(); edges.len()];
    for (at, (_, targets)) in edges.iter().enumerate() {
        let mut seen = HashSet::new();
        for (target, origin) in targets {
            if let Some(&target) = index.get(target)
                && seen.insert(target)
            {
                waits[at] += 1;
                readers[target].push(at);
                reads[at].push((target, origin));
            }
        }
    }
    let mut ready: BTreeSet<usize> = (0..edges.len()).filter(|&at| waits[at] == 0).collect();
    let mut order = Vec::with_capacity(edges.len());
    while let Some(at) = ready.pop_first() {
        order.push(edges[at].0.clone());
        for &reader in &readers[at] {
            waits[reader] -= 1;
            if waits[reader] == 0 {
                ready.insert(reader);
            }
        }
    }
    // Every node left waits for another node left, so walking from one to the next must come around.
    let mut visited: HashSet<usize> = HashSet::new();
    let mut circles = Vec::new();
    for start in (0..edges.len()).filter(|&at| waits[at] > 0) {
        let mut path: Vec<(usize, Origin)> = Vec::new();
        let mut at = start;
        while visited.insert(at) {
            let Some((next, origin)) = reads[at].iter().find(|(target, _)| waits[*target] > 0) else { break };
            path.push((at, (*origin).clone()));
            at = *next;
        }
        if let Some(from) = path.iter().position(|(node, _)| *node == at) {
            circles.push(path[from..].iter().map(|(node, origin)| (edges[*node].0.clone(), origin.clone())).collect());
        }
    }
    (order, circles)
}

fn circle_found<T: std::fmt::Display>(id: &'static str, title: &str, circle: &[(T, Origin)]) -> Diagnostic {
    let names: Vec<String> = circle.iter().chain(circle.first()).map(|(name, _)| format!("`{name}`")).collect();
    let origin = circle[0].1.clone();
    if circle.len() == 1 {
        return Diagnostic::error(id, origin, format!("{} reads itself", names[0]))
            .with_label("its own rows")
            .with_help("keep what it needs from before in a view of its own, and read that");
    }
    let step = |at: usize| format!("{} reads {}", names[at], names[at + 1]);
    let places = (0..circle.len()).map(|at| format!("{} at {}", step(at), circle[at].1)).collect::<Vec<_>>();
    Diagnostic::error(id, origin, format!("{title}: {}", names.join(" → ")))
        .with_label(step(0))
        .with_related(circle[1].1.clone(), step(1))
        .with_help(format!("break the circle at one of these places: {}", places.join("; ")))
}

fn fingerprints(project: &mut Project, parsed: &ParsedViews, order: &[ViewId]) {
    for id in order {
        let (Some(view), Some(query)) = (project.views.get(id), parsed.get(id)) else { continue };
        let parent =
            |parent: &ViewId| project.views.get(parent).map(|view| view.fingerprint.as_str()).unwrap_or_default();
        let value = fingerprint::of(view, project.keys_of(view), query, parent);
        if let Some(view) = project.views.get_mut(id) {
            view.fingerprint = value;
        }
    }
}

fn finish_dags(project: &mut Project, dags: Vec<ParsedDag>, out: &mut Vec<Diagnostic>) {
    let home: HashMap<ViewId, DagName> = dags
        .iter()
        .flat_map(|parsed| parsed.views.iter().map(|(view, _)| (view.clone(), parsed.dag.name.clone())))
        .collect();
    let mut edges: Edges<DagName> = Vec::new();
    for parsed in dags {
        let mut dag = parsed.dag;
        dag.views.retain(|id| project.views.contains_key(id));
        dag.views = project.in_dependency_order(&dag.views).into_iter().cloned().collect();
        dag.in_order = must_run_in_order(project, &dag);
        let mut targets = Vec::new();
        for (id, origin) in &parsed.views {
            let reads = project.views.get(id).into_iter().flat_map(FeatureView::view_reads);
            let others = reads.filter_map(|read| home.get(read)).filter(|other| **other != dag.name);
            targets.extend(others.map(|other| (other.clone(), origin.clone())));
        }
        edges.push((dag.name.clone(), targets));
        project.dags.insert(dag.name.clone(), dag);
    }
    for circle in order_of(&edges).1 {
        out.push(circle_found(ids::DAG_CYCLE, "DAGs wait for each other in a circle", &circle));
    }
}

/// Whether an interval of `dag` needs the one before it: a view reads the history, or the state of a `partial` view, of
/// the same DAG.
fn must_run_in_order(project: &Project, dag: &Dag) -> bool {
    let members: HashSet<&ViewId> = dag.views.iter().collect();
    let is_partial =
        |id: &ViewId| project.views.get(id).is_some_and(|view| matches!(view.output, Output::Partial { .. }));
    dag.views.iter().filter_map(|id| project.views.get(id)).flat_map(FeatureView::tables).any(|table| match table {
        Table::Source(_) => false,
        Table::History(id) => members.contains(id),
        Table::State(id) => members.contains(id) && is_partial(id),
    })
}
