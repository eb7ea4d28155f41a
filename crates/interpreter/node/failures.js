'use strict';
// Errors as a cell's author is to see them: with the places of the cell's text, not of what was made
// of it, and without the runner.

const util = require('node:util');

const { placer } = require('./place.js');

const PLACE = /(<cell-\d+>):(\d+):(\d+)/g;

// By name of a cell: where a place of its code is in its text, found out when first asked for.
const places = new Map();

function remember(name, head, map) {
  let place;
  places.set(name, (line, column) => {
    place ??= placer(head, map);
    return place(line, column);
  });
}

// Frames of the runner, and the one that all code has that was waiting.
function ours(line) {
  return line.includes(__dirname) || line.includes('(node:internal/process/task_queues:');
}

function tidy(stack) {
  return stack
    .split('\n')
    .filter((line) => !/^\s+at /.test(line) || !ours(line))
    .join('\n')
    .replace(PLACE, (whole, name, line, column) => {
      const place = places.get(name)?.(Number(line), Number(column));
      return place ? `${name}:${place.line}:${place.column}` : whole;
    });
}

function text(value) {
  try {
    return util.inspect(value);
  } catch {
    return Object.prototype.toString.call(value);
  }
}

// Name, value and traceback of whatever was thrown.
function describe(thrown) {
  if (!util.types.isNativeError(thrown) && !(thrown instanceof Error)) {
    const value = text(thrown);
    return { name: 'Uncaught', value, traceback: `Uncaught ${value}` };
  }
  try {
    const { name, message } = thrown;
    return { name: String(name), value: String(message), traceback: text(thrown) };
  } catch {
    return { name: 'Error', value: '', traceback: text(thrown) };
  }
}

// Rejected promises that nobody has yet caught, with why. Whoever does, does it soon.
const rejected = new Map();
const CAUGHT_WITHIN = 50; // milliseconds

function handled(promise) {
  rejected.delete(promise);
}

function flush() {
  for (const [promise, reason] of rejected) {
    rejected.delete(promise);
    process.stderr.write(`Unhandled rejection: ${text(reason)}\n`);
  }
}

function install() {
  const format = Error.prepareStackTrace;
  Error.prepareStackTrace = (error, trace) =>
    tidy(format ? format(error, trace) : [error, ...trace].join('\n    at '));
  // What nobody catches ends no kernel: it is said.
  process.on('uncaughtException', (error) => {
    process.stderr.write(`Uncaught exception: ${text(error)}\n`);
  });
  process.on('rejectionHandled', handled);
  process.on('unhandledRejection', (reason, promise) => {
    rejected.set(promise, reason);
    setTimeout(flush, CAUGHT_WITHIN).unref();
  });
}

module.exports = { describe, flush, handled, install, remember };
