'use strict';
// The kernel for JavaScript and TypeScript: cells run in this thread, one at a time.
//
// They are begun by the inspector in REPL mode, which is what gives top-level await and declarations
// that may be repeated, at the word of a second thread (control.js). From here what they do is said
// in records (output.js), up to their end.

const path = require('node:path');
const { Worker } = require('node:worker_threads');

const children = require('./children.js');
const display = require('./display.js');
const failures = require('./failures.js');
const modules = require('./modules.js');
const output = require('./output.js');
const termination = require('./termination.js');
const random = require('./random.js');

let current;

function end(cell) {
  if (cell !== current) return;
  failures.flush();
  current = undefined;
  output.tell({ type: 'done' });
}

function fail(cell, failure) {
  if (cell === current) output.tell({ type: 'fail', ...failure });
  end(cell);
}

// The cell that runs, if it is this one.
function named(number) {
  return current?.number === number ? current : undefined;
}

// What the other thread calls, through the inspector. It cannot interrupt what is called so: all work
// is left to the event loop.
const cells = {
  // The first cell can come.
  ready() {
    output.tell({ type: 'ready' });
  },

  // The next cell is about to run.
  begin(number, hidden, name, head, map) {
    current = { number, hidden };
    output.say({ type: 'begin' });
    if (!hidden) failures.remember(name, head, map);
  },

  // Its code ran to the end, and this is its last value. A cell that was interrupted can do so, too,
  // while the next one runs.
  async returned(number, value) {
    const cell = named(number);
    if (!cell) return;
    await new Promise(setImmediate);
    try {
      failures.handled(value);
      const last = await value;
      if (last !== undefined && !cell.hidden && cell === current) {
        const data = await display.bundle(last);
        if (cell === current) output.tell({ type: 'show', data, main: true });
      }
      end(cell);
    } catch (error) {
      fail(cell, failures.describe(error));
    }
  },

  // It threw this.
  async threw(number, error) {
    const cell = named(number);
    if (!cell) return;
    await new Promise(setImmediate);
    fail(cell, failures.describe(error));
  },

  // It cannot be read, or be waited for.
  failed(number, failure) {
    const cell = named(number);
    if (!cell) return;
    setImmediate(() => fail(cell, failure));
  },

  // What this thread is busy with is about to be terminated.
  forgetCallbacks: termination.forgetCallbacks,
};

output.install();
children.install();
failures.install();
modules.install();
display.install();
random.install();
process.argv.length = 1;
process.on('SIGINT', () => {});

// Node would say on standard error that it waits for a debugger, which is the other thread.
const { reallyExit } = process;
process.reallyExit = (code) => {
  require('node:fs').closeSync(2);
  reallyExit.call(process, code);
};

Object.defineProperty(globalThis, '$cells', { configurable: true, value: cells });
const control = new Worker(path.join(__dirname, 'control.js'));
// The cell is not waited for any more. What it began may go on, as after any cell.
control.on('message', (number) => {
  control.postMessage('heard');
  if (!named(number)) return;
  const name = 'Interrupted';
  const value = 'the cell was interrupted';
  fail(current, { name, value, traceback: `${name}: ${value}` });
});
