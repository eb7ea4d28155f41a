//! Pictures that code draws, in files beside it: `plot.py` draws `plot-1.png`, `plot-2.png` and so on. A
//! page of HTML that nothing else stands for, as of an interactive figure, counts as one.

use std::{
    borrow::Cow,
    fs::Permissions,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use atoll_core::{Error, Result, error::codes};
use base64::{Engine, engine::general_purpose::STANDARD};

use super::is_stdin;
use crate::client::Shown;

/// What pictures of code from standard input are called, in the working directory.
const STDIN_STEM: &str = "result";
/// As many pictures of one cell are saved: one that draws in a loop is not to fill the disk.
const MAX_PICTURES: usize = 1000;
/// And so many bytes of them.
const MAX_BYTES: usize = 1 << 30;
/// As for any new file: less what the umask takes.
const MODE: u32 = 0o666;

/// Where pictures go, and how many there were.
pub(super) struct Pictures {
    directory: PathBuf,
    stem: String,
    count: usize,
    /// How many bytes more are saved; none once there was one too many.
    room: Option<usize>,
}

impl Pictures {
    /// Those of `file`.
    pub(super) fn beside(file: &Path) -> Self {
        let stem = file.file_stem().filter(|_| !is_stdin(file));
        Self {
            directory: file.parent().map(Path::to_owned).unwrap_or_default(),
            stem: stem.map_or_else(|| STDIN_STEM.to_owned(), |stem| stem.to_string_lossy().into()),
            count: 0,
            room: Some(MAX_BYTES),
        }
    }

    /// Saves a result in the formats in which it is a picture, under one number, and says where. Files
    /// of an earlier run are replaced.
    ///
    /// # Errors
    /// `FILE_NOT_SAVED` when a file cannot be written, what comes is no base64, or with the first picture
    /// that is one too many; those after it are passed over.
    pub(super) fn save(&mut self, shown: &Shown) -> Result<Vec<PathBuf>> {
        // What is both is the same picture, and PNG loses nothing.
        let jpeg = shown.jpeg.as_ref().filter(|_| shown.png.is_none());
        let encoded = [("png", shown.png.as_ref()), ("jpeg", jpeg), ("pdf", shown.pdf.as_ref())];
        // To people, HTML is a page and no text; if it has one beside it, that is to be printed.
        let html = shown.html.as_ref().filter(|_| !has_text(shown));
        let plain = [("svg", shown.svg.as_ref()), ("html", html)];
        if plain.iter().chain(&encoded).all(|(_, text)| text.is_none()) {
            return Ok(Vec::new());
        }
        let Some(room) = self.room else { return Ok(Vec::new()) };
        self.count += 1;
        let mut pictures = Vec::new();
        for (format, text) in encoded {
            if let Some(text) = text {
                pictures.push((format, Cow::Owned(decode(format, text)?)));
            }
        }
        for (format, text) in plain {
            pictures.extend(text.map(|text| (format, Cow::Borrowed(text.as_bytes()))));
        }
        let size = pictures.iter().map(|(_, bytes)| bytes.len()).sum();
        self.room = room.checked_sub(size).filter(|_| self.count <= MAX_PICTURES);
        if self.room.is_none() {
            return Err(too_many());
        }
        let write = |(format, bytes): (&str, Cow<'_, [u8]>)| {
            let path = self.directory.join(format!("{}-{}.{format}", self.stem, self.count));
            replace(&path, &bytes).map(|()| path)
        };
        pictures.into_iter().map(write).collect()
    }
}

fn has_text(shown: &Shown) -> bool {
    [&shown.text, &shown.markdown, &shown.latex].into_iter().any(Option::is_some)
}

fn too_many() -> Error {
    not_saved(format!(
        "a cell's first {MAX_PICTURES} pictures are saved, up to {} GiB in all, and none after them.",
        MAX_BYTES >> 30
    ))
}

fn not_saved(fact: String) -> Error {
    Error::new(codes::FILE_NOT_SAVED, fact).with_fix("")
}

fn decode(format: &str, text: &str) -> Result<Vec<u8>> {
    let mut text = Cow::Borrowed(text);
    if text.contains(|character: char| character.is_ascii_whitespace()) {
        text.to_mut().retain(|character| !character.is_ascii_whitespace());
    }
    let decoded = STANDARD.decode(text.as_bytes());
    decoded.map_err(|error| not_saved(format!("a {format} picture is not in base64: {error}.")))
}

/// Writes a file as a whole: one that was there is replaced, and so is a symbolic link, whose target
/// stays as it is.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let written = tempfile::Builder::new()
        .prefix(".atoll-")
        .permissions(Permissions::from_mode(MODE))
        .tempfile_in(directory.unwrap_or(Path::new(".")))
        .and_then(|mut file| file.write_all(bytes).map(|()| file))
        .and_then(|file| file.persist(path).map_err(|error| error.error));
    let failed = |error| not_saved(format!("{} cannot be saved: {error}.", path.display()));
    written.map(drop).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn png(bytes: &[u8]) -> Shown {
        Shown { png: Some(STANDARD.encode(bytes)), ..Shown::default() }
    }

    #[test]
    fn pictures_are_numbered_beside_their_file() {
        let scratch = tempfile::tempdir().unwrap();
        let mut pictures = Pictures::beside(&scratch.path().join("plot.py"));
        let text = Shown { text: Some("1".to_owned()), ..Shown::default() };
        assert!(pictures.save(&text).unwrap().is_empty());
        assert_eq!(pictures.save(&png(b"a")).unwrap(), [scratch.path().join("plot-1.png")]);
        let (jpeg, svg) = (Some("/9j/".to_owned()), Some("<svg/>".to_owned()));
        let both = Shown { jpeg, svg, ..png(b"b") };
        let names = ["plot-2.png", "plot-2.svg"].map(|name| scratch.path().join(name));
        assert_eq!(pictures.save(&both).unwrap(), names);
        assert!(!scratch.path().join("plot-2.jpeg").exists());
        assert_eq!(fs::read(&names[0]).unwrap(), b"b");
        assert_eq!(fs::read(&names[1]).unwrap(), b"<svg/>");
    }

    #[test]
    fn html_is_saved_unless_a_text_stands_for_it() {
        let scratch = tempfile::tempdir().unwrap();
        let mut pictures = Pictures::beside(&scratch.path().join("plot.py"));
        let figure = Shown { html: Some("<p>".to_owned()), ..Shown::default() };
        let page = scratch.path().join("plot-1.html");
        assert_eq!(pictures.save(&figure).unwrap(), std::slice::from_ref(&page));
        assert_eq!(fs::read(page).unwrap(), b"<p>");
        let table = Shown { text: Some("a  b".to_owned()), ..figure };
        assert!(pictures.save(&table).unwrap().is_empty());
        let both = Shown { text: None, png: png(b"a").png, ..table };
        let names = ["plot-2.png", "plot-2.html"].map(|name| scratch.path().join(name));
        assert_eq!(pictures.save(&both).unwrap(), names);
        pictures.room = Some(2);
        let error = pictures.save(&Shown { png: None, ..both }).unwrap_err();
        assert_eq!(error.code, codes::FILE_NOT_SAVED);
    }

    #[test]
    fn pictures_without_end_are_not_saved() {
        let scratch = tempfile::tempdir().unwrap();
        let mut pictures = Pictures::beside(&scratch.path().join("plot.py"));
        pictures.count = MAX_PICTURES - 1;
        assert_eq!(pictures.save(&png(b"a")).unwrap(), [scratch.path().join("plot-1000.png")]);
        // Said once.
        let error = pictures.save(&png(b"a")).unwrap_err();
        assert!(error.code == codes::FILE_NOT_SAVED && error.message.contains("1000 pictures"));
        assert!(pictures.save(&png(b"a")).unwrap().is_empty());
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn large_pictures_are_saved_while_there_is_room_for_all_of_them() {
        let scratch = tempfile::tempdir().unwrap();
        let mut pictures = Pictures::beside(&scratch.path().join("plot.py"));
        pictures.room = Some(10);
        let shown = Shown { svg: Some("<svg/>".to_owned()), ..png(b"four") };
        assert_eq!(pictures.save(&shown).unwrap().len(), 2);
        let error = pictures.save(&png(b"a")).unwrap_err();
        assert!(error.code == codes::FILE_NOT_SAVED && error.message.contains("1 GiB"), "{error}");
        // Said once.
        assert!(pictures.save(&png(b"a")).unwrap().is_empty());
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
    }

    #[test]
    fn pictures_of_standard_input_go_where_one_is() {
        let pictures = Pictures::beside(Path::new("-"));
        assert_eq!((pictures.directory, pictures.stem), (PathBuf::new(), "result".to_owned()));
    }

    #[test]
    fn lines_in_base64_are_no_fault_and_other_things_are() {
        assert_eq!(decode("png", "YWJj\nZGVm\n").unwrap(), b"abcdef");
        assert_eq!(decode("png", "Y!").unwrap_err().code, codes::FILE_NOT_SAVED);
    }

    #[test]
    fn an_earlier_picture_is_replaced_and_a_link_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let (picture, other) = (scratch.path().join("a-1.png"), scratch.path().join("other"));
        fs::write(&other, "kept").unwrap();
        symlink(&other, &picture).unwrap();
        replace(&picture, b"new").unwrap();
        replace(&picture, b"newer").unwrap();
        assert_eq!(fs::read(&picture).unwrap(), b"newer");
        assert_eq!(fs::read(&other).unwrap(), b"kept");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_cannot_be_saved_is_said_by_name() {
        let error = replace(Path::new("/nonexistent/a-1.png"), b"").unwrap_err();
        assert_eq!(error.code, codes::FILE_NOT_SAVED);
        assert!(error.to_string().contains("/nonexistent/a-1.png"), "{error}");
    }
}
