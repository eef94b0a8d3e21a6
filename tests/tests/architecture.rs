//! The lines of the drawing, checked against the code: who may use whom, where each outside crate lives, that both
//! databases have one schema, and that files stay short. A change that needs another line changes the table here and says
//! why in its commit.
#![allow(clippy::expect_used, reason = "a test's helpers fail as a test does")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

#[path = "architecture/files.rs"]
mod files;
#[path = "architecture/names.rs"]
mod names;
#[path = "architecture/schema.rs"]
mod schema;

use files::{files_of, in_words, root};

/// What a crate of ours may use of the others, in what it ships.
const MAY_USE: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("providers", &["domain"]),
    ("queue", &["domain"]),
    ("store", &["domain"]),
    ("runtime", &["domain"]),
    ("dispatch", &["domain", "queue", "store"]),
    ("ingress", &["domain", "providers", "queue", "runtime"]),
    ("ingest", &["domain", "providers", "queue", "store", "dispatch", "runtime"]),
    ("inbox", &["domain", "providers", "queue", "store", "dispatch", "runtime"]),
    ("sender", &["domain", "providers", "queue", "store", "runtime"]),
    ("simulator", &["domain", "runtime"]),
    (
        "roost",
        &[
            "domain",
            "providers",
            "queue",
            "store",
            "runtime",
            "dispatch",
            "ingress",
            "ingest",
            "inbox",
            "sender",
            "simulator",
        ],
    ),
    ("testkit", &["domain", "providers", "queue", "store", "dispatch", "runtime", "simulator"]),
];

/// Crates that test or measure the whole: they may use everything, and nothing uses them.
const LOOK_AT_THE_WHOLE: &[&str] = &["roost-tests", "bench"];

/// What tests of a crate may use besides: these exist for that.
const FOR_TESTS: &[&str] = &["testkit", "simulator"];

/// The roles. They meet in the queue's topics and in the store.
const ROLES: &[&str] = &["ingress", "ingest", "inbox", "sender", "simulator"];

/// Outside crates that live in few places, so that swapping one touches few files. `bench` is free: the plain designs it
/// compares with use them directly.
const LIVES_IN: &[(&str, &[&str])] = &[
    ("lapin", &["queue"]),
    ("sqlx", &["store", "queue", "testkit"]),
    ("reqwest", &["runtime", "roost-tests"]),
    ("opentelemetry", &["runtime"]),
    ("opentelemetry_sdk", &["runtime"]),
    ("opentelemetry-prometheus", &["runtime"]),
    ("tracing-subscriber", &["runtime"]),
    ("prometheus", &["runtime"]),
    ("backoff", &["runtime"]),
    ("argon2", &["runtime"]),
    ("hyper", &["runtime", "simulator"]),
    ("axum", &["inbox"]),
    ("askama", &["inbox"]),
    ("clap", &["roost"]),
    ("mimalloc", &["roost", "roost-tests"]),
    ("fantoccini", &["roost-tests"]),
];

/// What a crate's tests may reach for although it never ships it: (crate, outside crate, why).
const TESTS_MAY_USE: &[(&str, &str, &str)] =
    &[("ingest", "sqlx", "plants a constraint that one item breaks"), ("inbox", "reqwest", "is the client of the API")];

/// Where an error may be just a sentence: elsewhere it says what happened, in a type, and its caller decides.
const MAY_USE_ANYHOW: &[&str] = &["roost", "runtime", "testkit"];

/// Crates through which a program reaches the outside. The vocabulary and the providers do none of that, so their tests
/// need no server.
const REACH_OUT: &[&str] =
    &["tokio", "tokio-util", "lapin", "sqlx", "hyper", "hyper-util", "reqwest", "lettre", "axum"];

/// Inside a crate that owns it, an outside crate stays behind one door: (crate, outside crate, word in the file's path).
const BEHIND_ONE_DOOR: &[(&str, &str, &str)] = &[
    ("shared/queue", "lapin", "rabbitmq"),
    ("shared/queue", "sqlx", "embedded"),
    ("shared/runtime", "backoff", "reconnect"),
    ("shared/runtime", "reqwest", "http_client"),
];

/// In lines.
const LONGEST_FILE: usize = 600;
/// Files that may be longer, each with the reason.
const MAY_BE_LONG: &[(&str, &str)] = &[];

#[derive(Debug, Default)]
struct Crate {
    folder: String,
    description: bool,
    shipped: BTreeSet<String>,
    for_tests: BTreeSet<String>,
}

/// The workspace's crates by name, as cargo sees them.
fn crates() -> BTreeMap<String, Crate> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");

    let mut crates = BTreeMap::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let manifest = Path::new(package["manifest_path"].as_str().expect("manifest_path"));
        let mut this = Crate {
            folder: in_words(manifest.parent().expect("a folder")),
            description: package["description"].as_str().is_some_and(|text| !text.is_empty()),
            ..Crate::default()
        };
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let name = dependency["name"].as_str().expect("a dependency's name").to_owned();
            match dependency["kind"].as_str() {
                Some("dev") => this.for_tests.insert(name),
                _ => this.shipped.insert(name), // normal and build
            };
        }
        crates.insert(package["name"].as_str().expect("a package's name").to_owned(), this);
    }
    crates
}

fn looks_at_the_whole(name: &str) -> bool {
    LOOK_AT_THE_WHOLE.contains(&name)
}

/// Fails with all of them at once, one a line.
#[track_caller]
fn assert_none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn crates_use_each_other_only_as_drawn() {
    let crates = crates();
    let mut crossed = Vec::new();
    for (name, this) in crates.iter().filter(|(name, _)| !looks_at_the_whole(name)) {
        let Some((_, may)) = MAY_USE.iter().find(|(listed, _)| listed == name) else {
            crossed.push(format!("{name} ({}) is not in the table", this.folder));
            continue;
        };
        for used in this.shipped.iter().filter(|used| crates.contains_key(*used)) {
            if !may.contains(&used.as_str()) {
                crossed.push(format!("{name} uses {used}"));
            }
        }
        for used in this.for_tests.iter().filter(|used| crates.contains_key(*used)) {
            if !may.contains(&used.as_str()) && !FOR_TESTS.contains(&used.as_str()) {
                crossed.push(format!("{name}'s tests use {used}"));
            }
        }
    }
    for (listed, _) in MAY_USE {
        if !crates.contains_key(*listed) {
            crossed.push(format!("{listed} is in the table and nowhere else"));
        }
    }
    assert_none("uses that the table does not draw", crossed);
}

#[test]
fn roles_never_use_each_other() {
    let mut crossed = Vec::new();
    for (name, this) in crates() {
        for used in this.shipped.iter().chain(&this.for_tests).filter(|used| ROLES.contains(&used.as_str())) {
            let allowed = name == "roost"
                || looks_at_the_whole(&name)
                || (used == "simulator" && (name == "testkit" || this.for_tests.contains(used)));
            if !allowed {
                crossed.push(format!("{name} uses {used}"));
            }
        }
    }
    assert_none("only roost and tests may use a role", crossed);
}

#[test]
fn what_is_for_tests_is_never_shipped() {
    let mut shipped = Vec::new();
    for (name, this) in crates().iter().filter(|(name, _)| !looks_at_the_whole(name)) {
        for used in ["testkit", "roost-tests", "bench", "rstest", "proptest", "insta"] {
            if this.shipped.contains(used) {
                shipped.push(format!("{name} uses {used}"));
            }
        }
    }
    assert_none("only tests may use these", shipped);
}

#[test]
fn outside_crates_live_where_they_may() {
    let crates = crates();
    let mut strayed = Vec::new();
    for (outside, homes) in LIVES_IN {
        for home in *homes {
            let lives = |this: &Crate| this.shipped.contains(*outside) || this.for_tests.contains(*outside);
            if !crates.get(*home).is_some_and(lives) {
                strayed.push(format!("{outside} is said to live in {home} and does not"));
            }
        }
        for (name, this) in crates.iter().filter(|(name, _)| *name != "bench") {
            let granted = TESTS_MAY_USE.iter().any(|(of, what, _)| of == name && what == outside);
            let used = this.shipped.contains(*outside) || (this.for_tests.contains(*outside) && !granted);
            if used && !homes.contains(&name.as_str()) {
                strayed.push(format!("{outside} in {name}; it lives in {}", homes.join(", ")));
            }
        }
    }
    assert_none("outside crates away from home", strayed);
}

#[test]
fn libraries_name_their_errors() {
    let crates = crates();
    let vague = crates
        .iter()
        .filter(|(name, this)| !looks_at_the_whole(name) && this.shipped.contains("anyhow"))
        .filter(|(name, _)| !MAY_USE_ANYHOW.contains(&name.as_str()))
        .map(|(name, _)| format!("{name} uses anyhow"))
        .collect();
    assert_none("errors without a type", vague);
}

#[test]
fn the_vocabulary_and_the_providers_reach_nothing_outside() {
    let crates = crates();
    let mut reaching = Vec::new();
    for name in ["domain", "providers"] {
        for outside in REACH_OUT {
            if crates[name].shipped.contains(*outside) {
                reaching.push(format!("{name} uses {outside}"));
            }
        }
    }
    assert_none("these do no I/O", reaching);
}

#[test]
fn outside_crates_stay_behind_one_door() {
    let mut through_the_wall = Vec::new();
    for (folder, outside, door) in BEHIND_ONE_DOOR {
        let path_of_it = format!("{outside}::");
        let mut seen = false;
        for file in files_of(&format!("{folder}/src"), &["rs"]) {
            let used = file.text.lines().any(|line| {
                let code = line.split("//").next().unwrap_or_default();
                code.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
                    .any(|word| word.starts_with(&path_of_it))
            });
            seen |= used;
            if used && !file.name.contains(door) {
                through_the_wall.push(format!("{outside} in {}; it stays in files named {door}", file.name));
            }
        }
        assert!(seen, "{folder} does not use {outside} at all: the table is out of date");
    }
    assert_none("outside crates through the wall", through_the_wall);
}

#[test]
fn every_crate_says_what_it_is_and_takes_the_common_lints() {
    let mut silent = Vec::new();
    for (name, this) in crates() {
        if !this.description {
            silent.push(format!("{name} has no description"));
        }
        let manifest = std::fs::read_to_string(root().join(&this.folder).join("Cargo.toml")).expect("a manifest");
        if !manifest.contains("[lints]\nworkspace = true") {
            silent.push(format!("{name} does not take the workspace's lints"));
        }
    }
    assert_none("crates that stand apart", silent);
}

#[test]
fn both_databases_have_the_same_migrations_tables_and_columns() {
    let (postgres, sqlite) = (schema::read("migrations/postgres"), schema::read("migrations/sqlite"));
    assert!(!postgres.files.is_empty() && !sqlite.files.is_empty(), "no migrations: nothing was compared");
    assert_eq!(postgres.files, sqlite.files, "names of the files");
    assert!(!postgres.tables.is_empty(), "no CREATE TABLE was found: the reader has gone blind");
    let of_both: BTreeSet<_> = postgres.tables.keys().chain(sqlite.tables.keys()).collect();
    let mut different = Vec::new();
    for table in of_both {
        match (postgres.tables.get(table), sqlite.tables.get(table)) {
            (Some(left), Some(right)) => {
                for column in left.symmetric_difference(right) {
                    let only = if left.contains(column) { "PostgreSQL" } else { "SQLite" };
                    different.push(format!("{table}.{column} is only in {only}"));
                }
            }
            (left, _) => {
                different.push(format!("{table} is only in {}", if left.is_some() { "PostgreSQL" } else { "SQLite" }));
            }
        }
    }
    assert_none("the schemas differ", different);
}

#[test]
fn files_stay_short() {
    let mut long = Vec::new();
    for file in files_of("", &["rs", "html", "css", "js", "sh", ""]) {
        let lines = file.text.lines().count();
        if lines > LONGEST_FILE
            && !MAY_BE_LONG.iter().any(|(name, _)| *name == file.name)
            && !file.name.starts_with("LICENSE")
        {
            long.push(format!("{} has {lines} lines", file.name));
        }
    }
    assert_none("files to split by noun", long);
}

/// A path of one person's machine in a file works nowhere else.
#[test]
fn no_file_names_the_desk_it_was_written_on() {
    // Each in two halves, or this file would be the first to be found.
    let desks = [
        concat!("/wo", "rk/"),
        concat!("/tmp/", "brief"),
        concat!("/root", "/"),
        concat!("/Us", "ers/"),
        concat!(".lib", "rary/"),
        concat!("issues ", "show"),
        concat!("Co-Authored", "-By"),
    ];
    let mut named = Vec::new();
    for file in files_of("", &["rs", "toml", "md", "sql", "html", "css", "js", "json", "yml", "yaml", "sh", ""]) {
        for (number, line) in file.text.lines().enumerate() {
            for desk in desks.iter().filter(|desk| line.contains(**desk)) {
                named.push(format!("{}:{} names {desk}", file.name, number + 1));
            }
        }
    }
    assert_none("one machine's own words", named);
}

#[test]
fn links_in_the_papers_lead_somewhere() {
    let mut broken = Vec::new();
    for file in files_of("", &["md"]) {
        let folder = root().join(&file.name).parent().expect("a folder").to_owned();
        for target in files::links(&file.text) {
            let path = target.split('#').next().unwrap_or_default();
            if !path.is_empty() && !folder.join(path).exists() {
                broken.push(format!("{} links to {target}", file.name));
            }
        }
    }
    assert_none("links that lead nowhere", broken);
}

#[test]
fn tests_that_the_papers_name_are_there() {
    let sources = files_of("", &["rs", "sql"]);
    let known = names::Known::of(sources.iter().map(|file| file.text.as_str()));
    let (mut missing, mut seen) = (Vec::new(), 0);
    for file in files_of("docs", &["md"]) {
        for name in names::named(&file.text) {
            seen += 1;
            if !known.has(name) {
                missing.push(format!("{} names {name}", file.name));
            }
        }
    }
    assert!(seen > 20, "only {seen} names were found: the reader has gone blind");
    assert_none("names of nothing", missing);
}

#[test]
fn tests_are_where_the_papers_say_they_are() {
    let (mut elsewhere, mut seen) = (Vec::new(), 0);
    for paper in files_of("docs", &["md"]) {
        let folder = root().join(&paper.name).parent().expect("a folder").to_owned();
        for item in names::items(&paper.text) {
            let linked: Vec<&str> = files::links(item)
                .into_iter()
                .filter(|target| target.contains("/tests/") && target.ends_with(".rs"))
                .collect();
            if linked.is_empty() {
                continue;
            }
            let texts: Vec<String> = linked
                .iter()
                .map(|target| std::fs::read_to_string(folder.join(target)).expect("links lead somewhere"))
                .collect();
            let there = names::Known::of(texts.iter().map(String::as_str));
            for name in names::named(item).into_iter().filter(|name| names::is_of_a_test(name)) {
                seen += 1;
                if !there.has(name) {
                    elsewhere.push(format!("{}: {name} is not in {}", paper.name, linked.join(", ")));
                }
            }
        }
    }
    assert!(seen >= 5, "only {seen} names were found beside a link: the reader has gone blind");
    assert_none("tests that are elsewhere", elsewhere);
}

/// What nobody counts yet, each with the reason.
const NOT_COUNTED_YET: &[(&str, &str)] =
    &[("send_end_to_end", "a claim does not say yet when its message was accepted")];

#[test]
fn every_instrument_is_fed_by_somebody() {
    let own = "shared/runtime/src/metrics/";
    let sources: Vec<_> = ["services", "shared"]
        .iter()
        .flat_map(|folder| files_of(folder, &["rs"]))
        .filter(|f| f.name.contains("/src/"))
        .collect();
    let (of_metrics, others): (Vec<_>, Vec<_>) = sources.iter().partition(|file| file.name.starts_with(own));
    let table = of_metrics.iter().find(|file| file.name == format!("{own}mod.rs")).expect("the table of instruments");
    let (_, methods) = table.text.split_once("impl Metrics {").expect("its methods");
    let (methods, _) = methods.split_once("#[cfg(test)]").expect("its tests");
    let names: Vec<&str> = methods
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub fn ").or_else(|| line.trim().strip_prefix("pub(crate) fn ")))
        .filter_map(|rest| rest.split('(').next())
        .filter(|name| !["new", "render"].contains(name))
        .collect();
    assert!(names.len() > 20, "only {names:?} were found: the reader has gone blind");
    let fed = |name: &str| {
        let call = format!(".{name}(");
        others.iter().any(|file| file.text.lines().any(|line| line.contains("metrics") && line.contains(&call)))
            || others.iter().any(|file| file.text.contains(&format!("metrics{call}")))
    };
    let excused = |name: &str| NOT_COUNTED_YET.iter().any(|(not_yet, _)| *not_yet == name);
    let hungry = names.iter().filter(|name| !fed(name) && !excused(name)).map(|name| (*name).to_owned()).collect();
    assert_none("instruments that nobody feeds", hungry);
    let excuses = NOT_COUNTED_YET.iter().filter(|(name, _)| fed(name)).map(|(name, _)| (*name).to_owned()).collect();
    assert_none("excuses out of date", excuses);
}
