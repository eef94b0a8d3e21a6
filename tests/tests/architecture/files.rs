//! The project's own files, without what was built or fetched.

use std::path::{Path, PathBuf};

const NOT_OURS: &[&str] = &["target", ".git", "node_modules", "roost-data"];

#[derive(Debug)]
pub(crate) struct File {
    /// Relative to the project's root, with `/`.
    pub(crate) name: String,
    pub(crate) text: String,
}

/// The folder that holds the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests live one folder below the root").to_owned()
}

/// A path of ours as the tables write it: relative, with `/`.
pub(crate) fn in_words(path: &Path) -> String {
    let relative = path.strip_prefix(root()).unwrap_or(path);
    relative.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// All files below `folder` (relative to the root) with one of the `endings`; "" stands for none, as in `tests/run`.
pub(crate) fn files_of(folder: &str, endings: &[&str]) -> Vec<File> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries {
            let path = entry.expect("a folder's entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if NOT_OURS.contains(&name.as_str()) || path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if endings.contains(&path.extension().unwrap_or_default().to_string_lossy().as_ref()) {
                let text = String::from_utf8_lossy(&std::fs::read(&path).expect("a readable file")).into_owned();
                found.push(File { name: in_words(&path), text });
            }
        }
    }
    assert!(!found.is_empty(), "no file in {folder:?} ends in {endings:?}");
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Targets of Markdown links and pictures that lie in the project.
pub(crate) fn links(markdown: &str) -> Vec<&str> {
    let mut links = Vec::new();
    let mut in_code = false;
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let mut rest = line;
        while let Some(start) = rest.find("](") {
            rest = &rest[start + 2..];
            let target = rest.split([')', ' ']).next().unwrap_or_default();
            if !target.contains(':') && !target.starts_with('#') {
                links.push(target);
            }
        }
    }
    links
}

#[test]
fn finds_the_links_of_a_page() {
    let page = "[a](docs/a.md#x) ![p](p.png \"t\") [w](https://example.com) [h](#here)\n```\n[c](code.md)\n```\n";
    assert_eq!(links(page), ["docs/a.md#x", "p.png"]);
}
