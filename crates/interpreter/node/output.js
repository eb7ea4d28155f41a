'use strict';
// What leaves this process: records, lines of JSON on descriptor 4, of what is printed as of all else.
// What programs that cells start print is text on descriptors 1 and 2. A record that begins with `?`
// is answered by a byte on descriptor 5, when all that was printed before it has been read: so
// nothing overtakes anything, though there are three pipes.

const { Writable } = require('node:stream');
const { readSync, writeSync } = require('node:fs');
const { StringDecoder } = require('node:string_decoder');

const RECORDS = 4;
const ANSWERS = 5;
const PIECE = 64 * 1024; // bytes of what is printed, in one record

const answer = Buffer.alloc(1);
const { stringify } = JSON;

// Half of a surrogate pair is no character, and the reader takes only characters.
function wellFormed(_key, value) {
  return typeof value === 'string' ? value.toWellFormed() : value;
}

// All of it, waiting for the reader where the pipe is full.
function send(line) {
  const bytes = Buffer.from(line);
  for (let at = 0; at < bytes.length; ) at += writeSync(RECORDS, bytes, at);
}

function say(record) {
  send(`${stringify(record)}\n`);
}

function tell(record) {
  send(`?${stringify(record, wellFormed)}\n`);
  readSync(ANSWERS, answer);
}

// Returns when all that was printed until now has been read.
function sync() {
  tell({ type: 'sync' });
}

function stream(fd) {
  const decoder = new StringDecoder('utf8');
  const writable = new Writable({
    decodeStrings: true,
    write(chunk, _encoding, callback) {
      try {
        for (let at = 0; at < chunk.length; at += PIECE) {
          const text = decoder.write(chunk.subarray(at, at + PIECE));
          if (text) say({ type: 'print', error: fd === 2, text });
        }
        callback();
      } catch (error) {
        callback(error);
      }
    },
    // As Node's own: it cannot be closed.
    destroy(error, callback) {
      callback(error);
    },
  });
  writable.fd = fd;
  writable._type = 'pipe';
  writable._isStdio = true;
  writable.end = () => writable;
  writable.destroySoon = writable.destroy = () => writable;
  return writable;
}

// Node's own streams would set the pipes not to block, for children as well, and write later.
function install() {
  for (const [name, fd] of [['stdout', 1], ['stderr', 2]]) {
    const value = stream(fd);
    Object.defineProperty(process, name, { configurable: true, enumerable: true, get: () => value });
  }
}

module.exports = { install, say, sync, tell };
