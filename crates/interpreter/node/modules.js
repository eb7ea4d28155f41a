'use strict';
// Modules for cells: as if each were a file in the working directory of the moment, with the packages
// that are installed globally as well.

const { createRequire, isBuiltin, Module } = require('node:module');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const vm = require('node:vm');

const { quietly } = require('./quiet.js');

// Where npm puts what is installed globally: beside the directory of the program.
const GLOBAL = path.join(path.dirname(process.execPath), '..', 'lib');

const main = new Module('<cell>');
main.paths = [];

let directory;
let require_;
let import_;

// Those of the working directory; made anew when it has changed.
function refresh() {
  const cwd = process.cwd();
  if (cwd === directory) return;
  directory = cwd;
  const file = path.join(cwd, '<cell>');
  require_ = createRequire(file);
  import_ = vm.compileFunction('return import(specifier, options)', ['specifier', 'options'], {
    filename: file,
    importModuleDynamically: vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER,
  });
}

function resolve(name, options) {
  refresh();
  return require_.resolve(name, options ?? { paths: [directory, GLOBAL] });
}

function requireHere(name) {
  refresh();
  return isBuiltin(name) ? require_(name) : require_(resolve(name));
}

// For the `import` of cells. `names` are those that a declaration binds: all have to be there.
async function load(specifier, options, names = []) {
  refresh();
  const namespace = await quietly(() => import_(specifier, options)).catch((error) => {
    // Imports do not look where packages are installed globally, so they are found for them.
    const bare = typeof specifier === 'string' && !/^[./]|^[a-z]+:/.test(specifier);
    if (error?.code !== 'ERR_MODULE_NOT_FOUND' || !bare) throw error;
    let file;
    try {
      file = createRequire(path.join(GLOBAL, '<cell>')).resolve(specifier);
    } catch {
      throw error;
    }
    return import_(pathToFileURL(file).href, options);
  });
  for (const name of names) {
    if (!(name in namespace)) {
      throw new SyntaxError(
        `The requested module '${specifier}' does not provide an export named '${name}'`,
      );
    }
  }
  return namespace;
}

// `import.meta` of cells.
const meta = {
  get dirname() {
    return process.cwd();
  },
  get filename() {
    return path.join(process.cwd(), '<cell>');
  },
  get url() {
    return pathToFileURL(meta.filename).href;
  },
  main: true,
  resolve: (name) => (isBuiltin(name) ? name : pathToFileURL(resolve(name)).href),
};

function install() {
  Object.defineProperty(requireHere, 'name', { value: 'require' });
  Object.defineProperties(requireHere, Object.getOwnPropertyDescriptors({
    cache: createRequire(path.join(GLOBAL, '<cell>')).cache,
    main,
    resolve,
  }));
  const globals = {
    $atoll: { value: Object.assign(load, { meta }) },
    require: { value: requireHere },
    module: { value: main },
    exports: { value: main.exports },
    __dirname: { get: () => process.cwd() },
    __filename: { get: () => meta.filename },
  };
  for (const [name, property] of Object.entries(globals)) {
    if (!property.get) property.writable = true;
    Object.defineProperty(globalThis, name, { configurable: true, enumerable: false, ...property });
  }
}

module.exports = { install };
