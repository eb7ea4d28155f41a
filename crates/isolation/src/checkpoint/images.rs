//! Prepares CRIU's images for a restore in another slot.
//!
//! CRIU numbers namespaces: the inventory has those of CRIU itself at the dump, and each process has
//! its own. Equal numbers mean that the process is to be in CRIU's namespace; other numbers, that
//! CRIU makes one. A restore happens in a slot that is there already, so CRIU must make neither the
//! user namespace nor the host name's: their numbers become CRIU's own.
//!
//! An image is one or two magic numbers, and records: a length and a protobuf message. Only the small
//! ones named here are read; they are bounded, and whatever is unexpected is an error.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::boot_id;

/// Where the log's old name is kept, beside the images.
const LOG_FILE: &str = "atoll-log";
/// As `LOG_FILE`, for what the sandbox takes for its boot's id.
const BOOT_ID_FILE: &str = "atoll-boot-id";

const INVENTORY: &str = "inventory.img";
/// Magic numbers, as CRIU's sources name them; in files, least significant byte first.
const INVENTORY_MAGIC: &[u8] = &0x5831_3116_u32.to_le_bytes();
/// Common to all but the inventory, and then that of process's namespaces.
const IDS_MAGIC: &[u8] = &[0x19, 0x43, 0x56, 0x54, 0x30, 0x20, 0x43, 0x54];

/// Field of the inventory that holds the numbers of CRIU's own namespaces.
const ROOT_IDS: u64 = 3;
/// Fields of the numbers of namespaces: of host names, and of users.
const SHARED: [u64; 2] = [8, 10];

/// An inventory has about 100 bytes, a process's numbers about 30.
const LARGEST: u64 = 64 << 10;
/// More processes than the kernel has numbers for.
const MOST_PROCESSES: usize = 1 << 22;

/// Why images cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("the image {0}: {1}")]
    File(PathBuf, io::Error),
    /// A file has another form than CRIU gives it.
    #[error("the image {0} is damaged: {1}")]
    Damaged(PathBuf, &'static str),
}

/// What is wrong with some bytes.
type Parsed<T> = Result<T, &'static str>;

/// Prepares what a dump wrote to `directory`. `log` is what /proc calls the log's pipe. As long as
/// there are many processes.
///
/// # Errors
/// [`Error`]; the images are then of no use.
pub(crate) fn prepare(directory: &Path, log: Option<&str>, boot_id: &str) -> Result<(), Error> {
    let path = directory.join(INVENTORY);
    let damaged = |path: &Path, why| Error::Damaged(path.to_path_buf(), why);
    let inventory = read(&path)?;
    let own = own_namespaces(&inventory).map_err(|why| damaged(&path, why))?;
    let entries = fs::read_dir(directory).map_err(|error| Error::File(directory.into(), error))?;
    let mut processes = 0;
    for entry in entries {
        let entry = entry.map_err(|error| Error::File(directory.into(), error))?;
        let name = entry.file_name();
        let is_ids = name.to_str().is_some_and(|name| {
            name.starts_with("ids-") && Path::new(name).extension().is_some_and(|end| end == "img")
        });
        if !is_ids {
            continue;
        }
        processes += 1;
        if processes > MOST_PROCESSES {
            return Err(damaged(directory, "too many processes"));
        }
        let path = entry.path();
        let shared = share(&read(&path)?, &own).map_err(|why| damaged(&path, why))?;
        replace(&path, &shared)?;
    }
    if processes == 0 {
        return Err(damaged(directory, "no processes"));
    }
    replace(&directory.join(BOOT_ID_FILE), boot_id.as_bytes())?;
    replace(&directory.join(LOG_FILE), log.unwrap_or_default().as_bytes())
}

/// The log's pipe at the dump, as [`prepare`] was told.
///
/// # Errors
/// [`Error`], also when the directory was never prepared.
pub(crate) fn log(directory: &Path) -> Result<Option<String>, Error> {
    let path = directory.join(LOG_FILE);
    let text = String::from_utf8(read(&path)?);
    let text = text.map_err(|_| Error::Damaged(path, "not a name"))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// The boot's id at the dump, as [`prepare`] was told.
///
/// # Errors
/// As for [`log`].
pub(crate) fn boot_id(directory: &Path) -> Result<String, Error> {
    let path = directory.join(BOOT_ID_FILE);
    let text = String::from_utf8(read(&path)?).unwrap_or_default();
    if boot_id::is_one(&text) { Ok(text) } else { Err(Error::Damaged(path, "no boot's id")) }
}

/// A small regular file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |error| Error::File(path.to_path_buf(), error);
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::Damaged(path.to_path_buf(), "not a file"));
    }
    let mut content = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > LARGEST {
        return Err(Error::Damaged(path.to_path_buf(), "too large"));
    }
    Ok(content)
}

/// Whole or not at all.
fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let failed = |error| Error::File(path.to_path_buf(), error);
    let new = path.with_extension("new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&new)
        .map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    file.set_permissions(PermissionsExt::from_mode(0o600)).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)
}

/// The numbers of [`SHARED`] in an inventory.
fn own_namespaces(image: &[u8]) -> Parsed<[u64; 2]> {
    let entry = record(image.strip_prefix(INVENTORY_MAGIC).ok_or("not an inventory")?)?;
    let root = fields(entry)?
        .into_iter()
        .find_map(|field| match field {
            Field { number: ROOT_IDS, value: Value::Bytes(bytes) } => Some(bytes),
            _ => None,
        })
        .ok_or("no namespaces of CRIU's")?;
    let root = fields(root)?;
    let number = |wanted| {
        root.iter().find_map(|field| match field.value {
            Value::Number(value) if field.number == wanted => Some(value),
            _ => None,
        })
    };
    let [uts, user] = SHARED.map(number);
    Ok([uts.ok_or("no host name's namespace")?, user.ok_or("no user namespace")?])
}

/// A process's image with the numbers of [`SHARED`] changed to `own`.
fn share(image: &[u8], own: &[u64; 2]) -> Parsed<Vec<u8>> {
    let entry = record(image.strip_prefix(IDS_MAGIC).ok_or("not of namespaces")?)?;
    let mut message = Vec::with_capacity(entry.len());
    let mut changed = 0;
    for field in fields(entry)? {
        let value = match SHARED.iter().position(|&shared| shared == field.number) {
            Some(at) => {
                changed += 1;
                Value::Number(own[at])
            }
            None => field.value,
        };
        put(&mut message, &Field { number: field.number, value });
    }
    if changed != SHARED.len() {
        return Err("namespaces are missing");
    }
    let length = u32::try_from(message.len()).map_err(|_| "too large")?;
    Ok([IDS_MAGIC, &length.to_le_bytes(), &message].concat())
}

/// The one record of an image.
fn record(content: &[u8]) -> Parsed<&[u8]> {
    let (length, rest) = content.split_first_chunk().ok_or("no length")?;
    if u32::from_le_bytes(*length) as usize != rest.len() {
        return Err("another length");
    }
    Ok(rest)
}

#[derive(Debug, PartialEq, Eq)]
struct Field<'a> {
    number: u64,
    value: Value<'a>,
}

/// The kinds of protobuf's encoding that the images read here have.
#[derive(Debug, PartialEq, Eq)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn fields(mut message: &[u8]) -> Parsed<Vec<Field<'_>>> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = take_number(&mut message)?;
        let value = match key & 7 {
            0 => Value::Number(take_number(&mut message)?),
            2 => {
                let length = usize::try_from(take_number(&mut message)?).map_err(|_| "too long")?;
                let (bytes, rest) = message.split_at_checked(length).ok_or("cut off")?;
                message = rest;
                Value::Bytes(bytes)
            }
            _ => return Err("an unknown kind of field"),
        };
        found.push(Field { number: key >> 3, value });
    }
    Ok(found)
}

/// A number of seven bits a byte, lowest first.
fn take_number(message: &mut &[u8]) -> Parsed<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first().ok_or("cut off")?;
        *message = rest;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        number |=
            bits.checked_shl(shift).filter(|part| part >> shift == bits).ok_or("too large")?;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err("too large")
}

fn put(message: &mut Vec<u8>, field: &Field<'_>) {
    match field.value {
        Value::Number(number) => {
            put_number(message, field.number << 3);
            put_number(message, number);
        }
        Value::Bytes(bytes) => {
            put_number(message, field.number << 3 | 2);
            put_number(message, bytes.len() as u64);
            message.extend_from_slice(bytes);
        }
    }
}

fn put_number(message: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        message.push(number as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What CRIU 4.2.1 wrote for an idle sandbox.
    const INVENTORY_IMAGE: &str = "163131584c000000080210011a1808011001180120012801300238034004480650075808600520013000580262006a2436666433383063362d656230612d343865332d396565392d356230613531343466393961";
    const IDS_IMAGE: &str =
        "19435654302043541800000008021002180220022809300a380b400c480d500e580f6005";

    fn bytes(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    fn dumped() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(INVENTORY), bytes(INVENTORY_IMAGE)).unwrap();
        fs::write(directory.path().join("ids-1.img"), bytes(IDS_IMAGE)).unwrap();
        fs::write(directory.path().join("ids-27.img"), bytes(IDS_IMAGE)).unwrap();
        fs::write(directory.path().join("core-1.img"), "anything").unwrap();
        directory
    }

    #[test]
    fn processes_share_two_namespaces_with_criu_and_keep_the_others() {
        let directory = dumped();
        let id = boot_id::generate().unwrap();
        prepare(directory.path(), Some("pipe:[7]"), &id).unwrap();
        for name in ["ids-1.img", "ids-27.img"] {
            let image = read(&directory.path().join(name)).unwrap();
            let entry = record(image.strip_prefix(IDS_MAGIC).unwrap()).unwrap();
            let numbers: Vec<(u64, Value<'_>)> = fields(entry)
                .unwrap()
                .into_iter()
                .map(|field| (field.number, field.value))
                .collect();
            let wanted = [2, 2, 2, 2, 9, 10, 11, 4, 13, 7, 15, 5];
            let wanted: Vec<(u64, Value<'_>)> = (1..).zip(wanted.map(Value::Number)).collect();
            assert_eq!(numbers, wanted);
        }
        assert_eq!(log(directory.path()).unwrap().as_deref(), Some("pipe:[7]"));
        assert_eq!(super::boot_id(directory.path()).unwrap(), id);
        assert_eq!(fs::read(directory.path().join("core-1.img")).unwrap(), b"anything");
        // A second time changes nothing.
        let once = read(&directory.path().join("ids-1.img")).unwrap();
        prepare(directory.path(), None, &id).unwrap();
        assert_eq!(read(&directory.path().join("ids-1.img")).unwrap(), once);
        assert_eq!(log(directory.path()).unwrap(), None);
    }

    #[test]
    fn every_cut_or_flipped_image_is_an_error_or_still_an_image() {
        let own = own_namespaces(&bytes(INVENTORY_IMAGE)).unwrap();
        assert_eq!(own, [4, 7]);
        let ids = bytes(IDS_IMAGE);
        for length in 0..ids.len() {
            assert!(share(&ids[..length], &own).is_err(), "{length}");
        }
        for at in 0..ids.len() {
            for bit in 0..8 {
                let mut flipped = ids.clone();
                flipped[at] ^= 1 << bit;
                if let Ok(shared) = share(&flipped, &own) {
                    assert_eq!(share(&shared, &own).as_deref(), Ok(&shared[..]));
                }
            }
        }
        let inventory = bytes(INVENTORY_IMAGE);
        for length in 0..inventory.len() {
            assert!(own_namespaces(&inventory[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn odd_directories_are_refused() {
        assert!(prepare(tempfile::tempdir().unwrap().path(), None, "").is_err());
        assert!(log(tempfile::tempdir().unwrap().path()).is_err());
        assert!(super::boot_id(tempfile::tempdir().unwrap().path()).is_err());
        let without = dumped();
        fs::remove_file(without.path().join("ids-1.img")).unwrap();
        fs::remove_file(without.path().join("ids-27.img")).unwrap();
        assert!(prepare(without.path(), None, "").is_err());
        let linked = dumped();
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        fs::write(elsewhere.path(), bytes(IDS_IMAGE)).unwrap();
        fs::remove_file(linked.path().join("ids-1.img")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), linked.path().join("ids-1.img")).unwrap();
        assert!(matches!(prepare(linked.path(), None, ""), Err(Error::File(..))));
        let piped = dumped();
        fs::remove_file(piped.path().join("ids-1.img")).unwrap();
        let made =
            std::process::Command::new("mkfifo").arg(piped.path().join("ids-1.img")).status();
        assert!(made.unwrap().success());
        assert!(matches!(prepare(piped.path(), None, ""), Err(Error::Damaged(..))));
        let large = dumped();
        fs::write(large.path().join("ids-1.img"), vec![0; LARGEST as usize + 1]).unwrap();
        assert!(matches!(prepare(large.path(), None, ""), Err(Error::Damaged(..))));
    }

    #[test]
    fn numbers() {
        for number in [0, 1, 127, 128, 300, u64::MAX] {
            let mut written = Vec::new();
            put_number(&mut written, number);
            assert_eq!(take_number(&mut &written[..]), Ok(number));
        }
        for bad in [&[0x80][..], &[0xff; 10], &[0xff; 11], &[]] {
            assert!(take_number(&mut &bad[..]).is_err(), "{bad:?}");
        }
    }
}
