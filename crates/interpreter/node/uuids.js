'use strict';
// UUIDs from the system's random numbers. Node's own come from its memory, and when a sandbox is copied
// with that, all copies would draw the same.

const crypto = require('node:crypto');
const { openSync, readSync } = require('node:fs');
const { syncBuiltinESMExports } = require('node:module');

function install() {
  const source = openSync('/dev/urandom');

  function randomUUID() {
    const bytes = Buffer.alloc(16);
    readSync(source, bytes);
    // Version 4, variant 1 (RFC 9562).
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    return bytes.toString('hex').replace(/(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
  }

  crypto.randomUUID = randomUUID;
  Object.getPrototypeOf(crypto.webcrypto).randomUUID = randomUUID;
  syncBuiltinESMExports();
}

module.exports = { install };
