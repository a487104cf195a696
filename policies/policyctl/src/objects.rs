//! Objects from files, directories and standard input. Everything is read and parsed before anything is
//! done with it; an error names the file, the document and the field.

use std::{
    collections::BTreeSet,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use api::resources::{self, Resource};
use serde_json::{Map, Value};

use crate::standard_input;

/// Largest input that is read: the server takes no larger object either.
const MAX_INPUT_BYTES: u64 = 32 << 20;

/// One object and where it came from.
pub(crate) struct Manifest {
    /// `file (document 2)`, for messages.
    pub(crate) origin: String,
    /// Its resource.
    pub(crate) resource: &'static Resource,
    /// Namespace; empty for cluster-scoped objects.
    pub(crate) namespace: String,
    /// Name.
    pub(crate) name: String,
    /// The object.
    pub(crate) object: Value,
}

/// Reads every path: a file, a directory (its `.yaml`, `.yml` and `.json` files, in name order) or `-`.
pub(crate) fn load(paths: &[PathBuf], default_namespace: &str) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for path in paths {
        for (origin, text) in texts(path)? {
            parse(&origin, &text, default_namespace, &mut manifests)?;
        }
    }
    if manifests.is_empty() {
        bail!(
            "no objects in {}",
            paths
                .iter()
                .map(|p| p.display().to_string())
                .collect::<Vec<_>>()
                .join(", ")
        );
    }
    Ok(manifests)
}

/// The items of a list, as `kubectl get -o yaml` writes them; those of a list of one kind (`PodList`) may leave out what
/// the list says once. Nothing if the object is no list.
pub(crate) fn items(object: &Value) -> Option<Vec<Value>> {
    let of_items = object["kind"].as_str()?.strip_suffix("List")?;
    let items = match object.get("items")? {
        Value::Array(items) => items.as_slice(),
        Value::Null => &[],
        _ => return None,
    };
    let items = items.iter().cloned();
    let typed = items.map(|mut item| {
        if !of_items.is_empty() && item.is_object() && item["kind"].is_null() {
            item["kind"] = of_items.into();
            item["apiVersion"] = object["apiVersion"].clone();
        }
        item
    });
    Some(typed.collect())
}

fn texts(path: &Path) -> Result<Vec<(String, String)>> {
    if standard_input::is_meant(path) {
        let text = bounded(standard_input::take()?, standard_input::NAME)?;
        return Ok(vec![(standard_input::NAME.to_owned(), text)]);
    }
    let metadata = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !metadata.is_dir() {
        return Ok(vec![(path.display().to_string(), read_file(path)?)]);
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)
        .with_context(|| format!("cannot list {}", path.display()))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()
        .with_context(|| format!("cannot list {}", path.display()))?;
    files.retain(|f| is_manifest(f) && !is_of_mount(f) && !f.is_dir());
    files.sort();
    files
        .iter()
        .map(|file| Ok((file.display().to_string(), read_listed(file)?)))
        .collect()
}

/// A file that was found in a folder. Nobody named it, so nothing is waited for that is no file: a pipe may never end.
fn read_listed(path: &Path) -> Result<String> {
    let metadata = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !metadata.is_file() {
        bail!(
            "{} is called like a manifest and is no file; name it by itself",
            path.display()
        );
    }
    read_file(path)
}

fn read_file(path: &Path) -> Result<String> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    bounded(file, &path.display().to_string())
}

fn bounded(reader: impl Read, origin: &str) -> Result<String> {
    let mut text = String::new();
    reader
        .take(MAX_INPUT_BYTES + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {origin}"))?;
    if text.len() as u64 > MAX_INPUT_BYTES {
        bail!("{origin} is larger than {} MiB", MAX_INPUT_BYTES >> 20);
    }
    Ok(text)
}

fn parse(origin: &str, text: &str, default_namespace: &str, into: &mut Vec<Manifest>) -> Result<()> {
    let mut documents = Vec::new();
    split(origin, text, &mut documents)?;
    for (origin, document) in documents {
        match document {
            Value::Object(mut list) if list.get("kind").and_then(Value::as_str) == Some("List") => {
                let items = match list.remove("items") {
                    Some(Value::Array(items)) => items,
                    Some(Value::Null) => Vec::new(),
                    _ => bail!("{origin}: items: must be a list"),
                };
                for (item, object) in items.into_iter().enumerate() {
                    into.push(manifest(
                        &format!("{origin}, items[{item}]"),
                        object,
                        default_namespace,
                    )?);
                }
            }
            object => into.push(manifest(&origin, object, default_namespace)?),
        }
    }
    Ok(())
}

fn manifest(origin: &str, mut object: Value, default_namespace: &str) -> Result<Manifest> {
    let text = |object: &Value, field: &str| object.get(field).and_then(Value::as_str).map(str::to_owned);
    let api_version =
        text(&object, "apiVersion").with_context(|| format!("{origin}: apiVersion: must be set"))?;
    let kind = text(&object, "kind").with_context(|| format!("{origin}: kind: must be set"))?;
    let resource = resources::by_kind(&api_version, &kind)
        .with_context(|| format!("{origin}: kind: {kind} of {api_version} is not served"))?;
    let metadata: &mut Map<String, Value> = object
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
        .with_context(|| format!("{origin}: metadata: must be set"))?;
    let name = metadata
        .get("name")
        .and_then(Value::as_str)
        .with_context(|| format!("{origin}: metadata.name: must be set"))?
        .to_owned();
    let namespace = if resource.namespaced() {
        let namespace = metadata.entry("namespace").or_insert(Value::Null);
        // As for the API, none is set by these either.
        if namespace.is_null() || *namespace == "" {
            *namespace = default_namespace.into();
        }
        let namespace = namespace
            .as_str()
            .with_context(|| format!("{origin}: metadata.namespace: must be a string"))?;
        namespace.to_owned()
    } else {
        String::new()
    };
    Ok(Manifest {
        origin: origin.to_owned(),
        resource,
        namespace,
        name,
        object,
    })
}

/// Every object in the files, whatever its kind, with where it stands. Folders are read with all folders in them: an
/// answer about some of the policies would be worse than none.
pub(crate) fn documents(paths: &[PathBuf]) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            for file in files_below(path)? {
                split(&file.display().to_string(), &read_listed(&file)?, &mut found)?;
            }
        } else {
            for (origin, text) in texts(path)? {
                split(&origin, &text, &mut found)?;
            }
        }
    }
    if found.is_empty() {
        let paths: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
        bail!("no objects in {}", paths.join(", "));
    }
    Ok(found)
}

/// Manifests in a folder and all folders in it. A link that leads nowhere is no file to pass over: reading it fails.
fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![directory.to_owned()];
    // By what they are and not by name: links may lead in a circle, or twice to one folder.
    let mut seen = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        let canonical =
            std::fs::canonicalize(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        if !seen.insert(canonical) {
            continue;
        }
        let entries =
            std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
            let path = entry.path();
            if is_of_mount(&path) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if is_manifest(&path) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// What a mounted ConfigMap keeps its files in: a folder of each time that it was written, and the link `..data` to the
/// one that counts. The files are read by the links beside them; no key of a ConfigMap begins like this.
fn is_of_mount(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_encoded_bytes().starts_with(b"..")
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|e| {
        ["yaml", "yml", "json"]
            .iter()
            .any(|known| e.eq_ignore_ascii_case(known))
    })
}

fn split(origin: &str, text: &str, into: &mut Vec<(String, Value)>) -> Result<()> {
    // The text is bounded; its documents and nodes are as many as fit into it: two for each byte (`[:,:]` is a list of
    // maps of nothing to nothing), and the few of a text without a byte. The other limits of the parser stay, above all
    // those on aliases, with which a little text can stand for a lot.
    let fitting = 2 * text.len() + 16;
    let limits = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: fitting,
            max_events: fitting,
            max_nodes: fitting,
        },
        // As kubectl reads them: `defaultMode: 0644` is not six hundred and forty-four.
        legacy_octal_numbers: true,
    };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, limits)
        .with_context(|| format!("{origin} is not valid YAML"))?;
    let several = documents.len() > 1;
    for (index, document) in documents.into_iter().enumerate() {
        if document.is_null() {
            continue;
        }
        let origin = match several {
            true => format!("{origin} (document {})", index + 1),
            false => origin.to_owned(),
        };
        into.push((origin, document));
    }
    Ok(())
}

/// Judges one manifest with the server's own strict decoder and, where the meaning can be judged without a
/// cluster, with the compiler of network policy.
pub(crate) fn check(manifest: &Manifest) -> Result<(), String> {
    let strict = control_wire::query::FieldValidation::Strict;
    control_wire::decode::patched(manifest.resource, None, manifest.object.clone(), strict)
        .map_err(|status| status.message().to_owned())?;
    policies_compiler::validate_object(&manifest.object).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        problems.join("; ")
    })?;
    Ok(())
}

impl Manifest {
    /// `pod/web`, with the namespace where it is not the default one, as kubectl names results.
    pub(crate) fn shown(&self) -> String {
        shown(self.resource, &self.name)
    }
}

/// `pod/web` or `networkpolicy.networking.k8s.io/web`, as kubectl names results.
pub(crate) fn shown(resource: &Resource, name: &str) -> String {
    match resource.group {
        "" => format!("{}/{name}", resource.singular),
        group => format!("{}.{group}/{name}", resource.singular),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Vec<Manifest>> {
        let mut manifests = Vec::new();
        parse("test.yaml", text, "lab", &mut manifests)?;
        Ok(manifests)
    }

    #[test]
    fn reads_several_documents_and_lists() {
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: p}\n";
        let manifests = load_text(text).unwrap();
        let found: Vec<_> = manifests
            .iter()
            .map(|m| (m.shown(), m.namespace.as_str()))
            .collect();
        assert_eq!(
            found,
            [("namespace/a".to_owned(), ""), ("pod/p".to_owned(), "lab")]
        );
    }

    /// `kubectl` reads YAML 1.1 there, and manifests are written for it.
    #[test]
    fn a_number_with_a_zero_in_front_is_octal() {
        let mut found = Vec::new();
        split(
            "test.yaml",
            "{mode: 0644, order: 010, zero: 0, half: 0.5, text: '010'}",
            &mut found,
        )
        .unwrap();
        let wanted = serde_json::json!({"mode": 0o644, "order": 8, "zero": 0, "half": 0.5, "text": "010"});
        assert_eq!(found[0].1, wanted);
    }

    #[test]
    fn no_file_is_passed_over_without_a_word() {
        use std::{fs, os::unix::fs::symlink};
        let directory = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let namespace =
            |name: &str| format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}");
        fs::write(at("upper.YAML"), namespace("upper")).unwrap();
        fs::write(elsewhere.path().join("linked.yml"), namespace("linked")).unwrap();
        symlink(elsewhere.path(), at("folder")).unwrap();
        symlink(".", at("circle")).unwrap();
        let read = || documents(&[directory.path().to_owned()]);
        let names: Vec<Value> = read()
            .unwrap()
            .iter()
            .map(|(_, object)| object["metadata"]["name"].clone())
            .collect();
        assert_eq!(names, ["linked", "upper"]);
        symlink("/nowhere/x.yaml", at("dangling.yaml")).unwrap();
        let said = format!("{:#}", read().unwrap_err());
        assert!(said.contains("dangling.yaml"), "{said}");
        fs::remove_file(at("dangling.yaml")).unwrap();
        let pipe = at("pipe.yaml");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let said = format!("{:#}", read().unwrap_err());
        assert!(said.contains("pipe.yaml is called like a manifest"), "{said}");
    }

    #[test]
    fn a_namespace_that_is_null_or_empty_is_not_set() {
        for namespace in ["null", "''"] {
            let text =
                format!("{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: {namespace}}}}}");
            let manifests = load_text(&text).unwrap();
            assert_eq!(manifests[0].namespace, "lab", "{namespace}");
            assert_eq!(manifests[0].object["metadata"]["namespace"], "lab", "{namespace}");
        }
    }

    #[test]
    fn a_text_without_objects_is_none_and_a_little_text_is_no_flood() {
        let documents = |text: &str| {
            let mut found = Vec::new();
            split("test.yaml", text, &mut found).map(|()| found)
        };
        let empty = [
            "",
            " ",
            "\n",
            "\n\n",
            "---",
            "---\n",
            "---\n---\n",
            "--- \n...\n",
            "#",
            "#\n",
            "# a\n",
            "null",
            "~",
            "\u{feff}",
            "\u{feff}\n",
        ];
        for text in empty {
            assert_eq!(documents(text).unwrap(), [], "{text:?}");
        }
        for text in [
            "{}",
            "[]",
            "{a}",
            "a:",
            "[a,b,[],{},[[]]]",
            "- - - - a",
            "[{},{},{},{},{},{}]",
        ] {
            assert_eq!(documents(text).unwrap().len(), 1, "{text:?}");
        }
        assert!(
            load_text("{apiVersion: v1, kind: List, items: null}")
                .unwrap()
                .is_empty()
        );
        assert!(load_text("{apiVersion: v1, kind: List, items: 1}").is_err());
        assert!(load_text("{apiVersion: v1, kind: List}").is_err());
    }

    /// As the kubelet lays one out: `..data` leads to the folder that counts, and a link beside it to each of its entries.
    #[test]
    fn a_mounted_config_map_is_read_once() {
        use std::{fs, os::unix::fs::symlink};
        let mount = tempfile::tempdir().unwrap();
        let at = |path: &str| mount.path().join(path);
        let object = |name: &str| format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}");
        fs::create_dir_all(at("..2026_11_28/folder")).unwrap();
        fs::write(at("..2026_11_28/a.yaml"), object("a")).unwrap();
        fs::write(at("..2026_11_28/folder/b.yaml"), object("b")).unwrap();
        symlink("..2026_11_28", at("..data")).unwrap();
        symlink("..data/a.yaml", at("a.yaml")).unwrap();
        symlink("..data/folder", at("folder")).unwrap();
        symlink(".", at("circle")).unwrap();
        let names = |found: Vec<(String, Value)>| -> Vec<String> {
            let names = found
                .iter()
                .map(|(_, object)| object["metadata"]["name"].as_str());
            names.map(|name| name.unwrap().to_owned()).collect()
        };
        let found = documents(&[mount.path().to_owned()]).unwrap();
        assert!(found[0].0.ends_with("/a.yaml"), "{found:?}");
        assert_eq!(names(found), ["a", "b"]);
        // Who names the folder itself means it.
        assert_eq!(names(documents(&[at("..data")]).unwrap()), ["a", "b"]);
        let manifests = load(&[mount.path().to_owned()], "default").unwrap();
        assert_eq!(manifests.len(), 1);
    }

    #[test]
    fn policies_of_every_kind_are_judged() {
        let problem = |text: &str| check(&load_text(text).unwrap()[0]).unwrap_err();
        let kubernetes = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: x}}]}]}";
        assert!(problem(kubernetes).starts_with("spec.ingress[0].from[0].ipBlock.cidr: "));
        let calico = "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {selector: 'a =='}";
        assert!(problem(calico).starts_with("spec.selector: "));
        let cluster = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec: {tier: Admin, priority: 2000, subject: {namespaces: {}}}";
        assert!(problem(cluster).starts_with("spec.priority: "));
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: []}";
        assert_eq!(check(&load_text(pod).unwrap()[0]), Ok(()));
    }

    #[test]
    fn names_the_document_and_the_field() {
        let error = |text: &str| format!("{:#}", load_text(text).map(|_| ()).unwrap_err());
        let second = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\n";
        assert_eq!(error(second), "test.yaml (document 2): metadata: must be set");
        assert_eq!(
            error("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}"),
            "test.yaml: kind: Deployment of apps/v1 is not served"
        );
    }
}
