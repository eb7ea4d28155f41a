'use strict';
// Random numbers that the system has a part in. Node's own come from its memory, and when a sandbox is
// copied with that, all copies would draw the same. What keys, TLS and worker threads draw cannot be
// reached from here.

const { Buffer } = require('node:buffer');
const crypto = require('node:crypto');
const { fstatSync, openSync, readSync } = require('node:fs');
const { syncBuiltinESMExports } = require('node:module');

// How much is asked of the system at once, in bytes.
const CHUNK = 65536;

function install() {
  const source = openSync('/dev/urandom');
  const device = fstatSync(source).rdev;
  const drawn = Buffer.alloc(CHUNK);

  // A cell may have closed it, and then it can be any file.
  function isOpen() {
    try {
      return fstatSync(source).rdev === device;
    } catch {
      return false;
    }
  }

  // Adds what the system gives to random bytes, which stay as random as they were. A callback may find
  // that they have been given away meanwhile.
  function stir(buffer, offset = 0, length = buffer.byteLength - offset) {
    if (!isOpen() || offset + length > buffer.byteLength) return;
    const bytes = Buffer.from(buffer.buffer ?? buffer, (buffer.byteOffset ?? 0) + offset, length);
    for (let at = 0; at < length; ) {
      const read = readSync(source, drawn, 0, Math.min(CHUNK, length - at));
      for (let index = 0; index < read; index++) bytes[at + index] ^= drawn[index];
      at += read;
    }
  }

  // Calls what Node has, which checks the arguments, and changes what that gives, now or later.
  function changed(original, args, change) {
    const callback = args.at(-1);
    if (typeof callback !== 'function') return change(original(...args));
    return original(...args.slice(0, -1), (error, value) => {
      if (error) callback(error);
      else callback(null, change(value));
    });
  }

  const { randomBytes: bytes, randomFill: fill, randomFillSync: fillSync, randomInt: int } = crypto;

  function stirred(buffer) {
    stir(buffer);
    return buffer;
  }

  // The part of it that was asked for, in elements.
  function stirredPart(buffer, offset, size) {
    const width = buffer.BYTES_PER_ELEMENT ?? 1;
    stir(buffer, (offset ?? 0) * width, size === undefined ? undefined : size * width);
    return buffer;
  }

  function randomBytes(size, callback) {
    return changed(bytes, callback === undefined ? [size] : [size, callback], stirred);
  }

  function randomFillSync(buffer, offset, size) {
    return stirredPart(fillSync(buffer, offset, size), offset, size);
  }

  function randomFill(buffer, ...rest) {
    const [offset, size] = rest.filter((value) => typeof value !== 'function');
    return changed(fill, [buffer, ...rest], () => stirredPart(buffer, offset, size));
  }

  // Evenly from 0 up to a number of at most 48 bits.
  function below(limit) {
    const number = Buffer.alloc(6);
    for (;;) {
      const value = stirred(number).readUIntBE(0, 6);
      if (value < 2 ** 48 - (2 ** 48 % limit)) return value % limit;
    }
  }

  function randomInt(min, max, callback) {
    const args = [...arguments];
    const [first, second] = typeof max === 'number' ? [min, max] : [0, min];
    const span = second - first;
    return changed(int, args, (value) => first + ((value - first + below(span)) % span));
  }

  // A UUID with other random bytes, which begin somewhere.
  function versioned(uuid, version, from) {
    const bytes = Buffer.from(uuid.replaceAll('-', ''), 'hex');
    stir(bytes, from);
    // Version and variant (RFC 9562).
    bytes[6] = (bytes[6] & 0x0f) | (version << 4);
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    return bytes.toString('hex').replace(/(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
  }

  const { randomUUID: uuid, randomUUIDv7: uuid7 } = crypto;

  function randomUUID(options) {
    return versioned(uuid(options), 4, 0);
  }

  function randomUUIDv7(options) {
    return versioned(uuid7(options), 7, 8);
  }

  Object.assign(crypto, { randomBytes, randomFill, randomFillSync, randomInt, randomUUID });
  if (uuid7) crypto.randomUUIDv7 = randomUUIDv7;
  // What it was called once.
  for (const name of ['pseudoRandomBytes', 'prng', 'rng']) {
    const value = { value: randomBytes, configurable: true, enumerable: false, writable: true };
    if (name in crypto) Object.defineProperty(crypto, name, value);
  }

  const web = Object.getPrototypeOf(crypto.webcrypto);
  const { getRandomValues: values, randomUUID: webUUID } = web;
  web.randomUUID = function randomUUID() {
    return versioned(webUUID.apply(this, arguments), 4, 0);
  };
  web.getRandomValues = function getRandomValues(array) {
    return stirred(values.apply(this, arguments));
  };
  syncBuiltinESMExports();
}

module.exports = { install };
