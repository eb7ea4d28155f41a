//! COPY and ADD.

use atoll_core::Result;

use super::{
    Reader, array,
    lines::{self, Instruction},
    refuse, words,
};
use crate::template::context;

impl Reader<'_> {
    pub(super) fn copy(&mut self, one: &Instruction) -> Result<()> {
        let (mut owner, mut mode) = (String::new(), String::new());
        for (flag, value) in &one.flags {
            let value = value.as_deref().unwrap_or_default();
            match flag.as_str() {
                "chown" => owner = self.plain(one, value)?,
                "chmod" => mode = self.mode(one, value)?,
                // Of how Docker stores layers.
                "link" => {}
                _ => return Err(unsupported(one, flag)),
            }
        }
        if !one.documents.is_empty() {
            let fix = "Put the text in a file beside the Dockerfile and COPY that.";
            let what = format!("{} of a here-document is not supported.", one.name);
            return Err(refuse(one.line, what, fix));
        }
        let words = array(one)?.unwrap_or_else(|| words::split(&one.text, self.escape));
        let [sources @ .., destination] = &words[..] else {
            return Err(too_few(one));
        };
        if sources.is_empty() {
            return Err(too_few(one));
        }
        if lines::marker(destination).is_some() {
            let what = format!("{} cannot copy to a here-document.", one.name);
            return Err(refuse(one.line, what, "Name a path."));
        }
        let destination = self.plain(one, destination)?;
        for source in sources {
            let source = self.source(one, source)?;
            let args = vec![source, destination.clone(), owner.clone(), mode.clone()];
            self.push("COPY", args, Some(one.line));
        }
        Ok(())
    }

    /// A path below the directory that is built.
    fn source(&mut self, one: &Instruction, word: &str) -> Result<String> {
        let source = self.expanded(one, word)?;
        if one.name == "ADD" && is_url(&source) {
            let fix = "Fetch it in a step: RUN curl -fsSL -o FILE URL.";
            return Err(refuse(one.line, format!("ADD of {source} is not supported."), fix));
        }
        if !context::is_inside(&source) {
            let what = format!("{source:?} is not below the directory that is built.");
            let fix =
                "Name a path relative to that directory, without a / in front or .. out of it.";
            return Err(refuse(one.line, what, fix));
        }
        let endings = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst"];
        if one.name == "ADD" && endings.iter().any(|ending| source.ends_with(ending)) {
            self.note(one.line, format!("ADD copies {source} as it is; unpack it with RUN tar."));
        }
        Ok(source)
    }

    /// Four octal digits.
    fn mode(&self, one: &Instruction, word: &str) -> Result<String> {
        let mode = self.expanded(one, word)?;
        let is_octal = mode.chars().all(|digit| ('0'..='7').contains(&digit));
        if !(3..=4).contains(&mode.len()) || !is_octal {
            let what = format!("--chmod={mode} is not a mode.");
            return Err(refuse(one.line, what, "Give three or four octal digits, such as 0755."));
        }
        Ok(format!("{mode:0>4}"))
    }
}

fn is_url(source: &str) -> bool {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+.-".contains(c))
    };
    source.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme))
}

fn too_few(one: &Instruction) -> atoll_core::Error {
    let what = format!("{} needs a source and a destination.", one.name);
    refuse(one.line, what, &format!("Write {} SOURCE… DESTINATION.", one.name))
}

fn unsupported(one: &Instruction, flag: &str) -> atoll_core::Error {
    let fix = match flag {
        "from" => {
            "There are no stages: build the other one as a template and this one with --from-template, \
             or fetch the files in a RUN."
        }
        "exclude" => "List what is left out in .dockerignore.",
        "parents" => "Name the directories in the destination.",
        "unpack" | "checksum" | "keep-git-dir" => "Fetch, check and unpack in a RUN.",
        _ => "Leave it out.",
    };
    refuse(one.line, format!("{} --{flag} is not supported.", one.name), fix)
}
