//! The operator's registry file: entries are added and dropped, and everything else in it, comments and
//! order, stays as it was.
//!
//! Invariant: what is written was read back as a registry first, and replaces the file in one step.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use argus_models::{ModelId, Registry, registry::DEFAULT_REGISTRY};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table};

pub(super) struct RegistryFile {
    path: PathBuf,
    document: DocumentMut,
}

impl RegistryFile {
    /// Reads a registry file; one that is not there begins as the built-in registry.
    pub(super) fn open_or_begin(path: &Path) -> anyhow::Result<Self> {
        match path.exists() {
            true => Self::open(path),
            false => Self::parse(path, DEFAULT_REGISTRY),
        }
    }

    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        // The limits and messages of every other reader.
        Registry::open(path).with_context(|| path.display().to_string())?;
        Self::parse(path, &std::fs::read_to_string(path).with_context(|| path.display().to_string())?)
    }

    fn parse(path: &Path, text: &str) -> anyhow::Result<Self> {
        let document = text.parse().with_context(|| path.display().to_string())?;
        Ok(Self { path: path.to_owned(), document })
    }

    /// The folder that relative paths start from.
    pub(super) fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    fn models(&mut self) -> anyhow::Result<&mut ArrayOfTables> {
        let models = self.document.entry("model").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        match models {
            Item::ArrayOfTables(models) => Ok(models),
            _ => bail!("`model` is an inline array here; write entries as [[model]] to have them edited"),
        }
    }

    fn position(&mut self, id: &ModelId) -> anyhow::Result<Option<usize>> {
        let is = |table: &Table| table.get("id").and_then(Item::as_str) == Some(id.as_str());
        Ok(self.models()?.iter().position(is))
    }

    /// Adds an entry at the end, or puts it in the place of the one of the same id.
    pub(super) fn put(&mut self, id: &ModelId, mut entry: Table, replace: bool) -> anyhow::Result<()> {
        match self.position(id)? {
            None => {
                entry.decor_mut().set_prefix("\n");
                self.models()?.push(entry);
            }
            Some(_) if !replace => {
                bail!("{} has a model `{id}` already; --replace overwrites it", self.path.display())
            }
            Some(index) => {
                let place = self.models()?.get_mut(index).context("it was just found")?;
                *entry.decor_mut() = place.decor().clone();
                entry.set_position(place.position());
                *place = entry;
            }
        }
        Ok(())
    }

    /// Drops an entry. What stands above the first one is the file's own and stays.
    pub(super) fn remove(&mut self, id: &ModelId) -> anyhow::Result<()> {
        let Some(index) = self.position(id)? else {
            bail!("{} has no model `{id}`", self.path.display());
        };
        let models = self.models()?;
        let above = models.get(index).and_then(|table| table.decor().prefix()?.as_str().map(str::to_owned));
        models.remove(index);
        let heading = above.filter(|_| index == 0).unwrap_or_default();
        match models.get_mut(0) {
            _ if heading.trim().is_empty() => {}
            Some(first) => {
                let own = first.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default();
                let joined = format!("{}\n{}", heading.trim_end_matches('\n'), own);
                first.decor_mut().set_prefix(joined);
            }
            None => self.document.set_trailing(heading),
        }
        Ok(())
    }

    /// Checks and writes.
    pub(super) fn save(&self) -> anyhow::Result<()> {
        let text = self.document.to_string();
        Registry::from_toml(&text).context("the entry would not be read back; nothing was written")?;
        let folder = self.folder();
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let name = self.path.file_name().context("a registry is a file")?.to_string_lossy();
        let beside = folder.join(format!(".{name}.{}", std::process::id()));
        let written = std::fs::File::create(&beside).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&beside, &self.path)
        });
        if written.is_err() {
            // It is of no use to anybody.
            let _ = std::fs::remove_file(&beside);
        }
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str) -> Table {
        let text = format!(
            "id = \"{id}\"\narchitecture = \"clip\"\npath = \"{id}\"\nlicence = \"MIT\"\ntasks = [\"image-embedding\"]\n\
             work_units = 1.0\ntimeout_seconds = 6\nverification = \"compare\"\nnumerics = \"portable-f32\"\n"
        );
        text.parse::<DocumentMut>().unwrap().as_table().clone()
    }

    #[test]
    fn comments_and_order_stay_when_entries_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("models.toml");
        let before = format!("{DEFAULT_REGISTRY}\n# the last word\n");
        std::fs::write(&path, &before).unwrap();
        let id: ModelId = "vit-l-14".parse().unwrap();

        let mut file = RegistryFile::open(&path).unwrap();
        file.put(&id, entry("vit-l-14"), false).unwrap();
        file.save().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(DEFAULT_REGISTRY.trim_end()), "{text}");
        assert!(text.contains("# the last word"));
        let ids = |registry: &Registry| -> Vec<String> {
            registry.models().iter().map(|spec| spec.id.to_string()).collect()
        };
        let known = ids(&Registry::open(&path).unwrap());
        assert_eq!(known.last().map(String::as_str), Some("vit-l-14"));

        let mut file = RegistryFile::open(&path).unwrap();
        let error = file.put(&id, entry("vit-l-14"), false).unwrap_err().to_string();
        assert!(error.contains("--replace"), "{error}");
        file.put(&id, entry("vit-l-14"), true).unwrap();
        file.remove(&id).unwrap();
        file.save().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim_end(), before.trim_end());
    }

    #[test]
    fn the_heading_outlives_the_first_entry_and_all_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("models.toml");
        std::fs::write(&path, DEFAULT_REGISTRY).unwrap();
        let heading = DEFAULT_REGISTRY.lines().next().unwrap();
        for spec in Registry::default().models() {
            let mut file = RegistryFile::open(&path).unwrap();
            file.remove(&spec.id).unwrap();
            file.save().unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with(heading), "{text}");
            assert!(Registry::open(&path).unwrap().get(spec.id.as_str()).is_none());
        }
        assert!(RegistryFile::open(&path).unwrap().remove(&"clip-tiny".parse().unwrap()).is_err());
    }

    #[test]
    fn an_entry_that_no_reader_takes_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("models.toml");
        let mut file = RegistryFile::open_or_begin(&path).unwrap();
        let mut bad = entry("bad");
        bad["work_units"] = toml_edit::value(-1.0);
        file.put(&"bad".parse().unwrap(), bad, false).unwrap();
        assert!(file.save().unwrap_err().to_string().contains("nothing was written"));
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
