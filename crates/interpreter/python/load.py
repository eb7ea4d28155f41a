# Run in every Python kernel before its first cell, as a hidden cell: loads the package atoll_kernel
# and leaves neither a name nor a path behind. Not an error where the kernel is no IPython.
def _atoll_load():
    import importlib.util
    import sys

    if "atoll_kernel" in sys.modules or "IPython" not in sys.modules:
        return
    shell = sys.modules["IPython"].get_ipython()
    if shell is None:
        return
    directory = "@DIRECTORY@/atoll_kernel"
    spec = importlib.util.spec_from_file_location(
        "atoll_kernel", directory + "/__init__.py", submodule_search_locations=[directory]
    )
    sys.modules["atoll_kernel"] = package = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(package)
        package.load(shell)
    except BaseException:
        del sys.modules["atoll_kernel"]
        raise


try:
    _atoll_load()
finally:
    del _atoll_load
