"What holds for the repository as a whole: versions, weight, order of dependency, notebooks that are fit to commit."
import ast, builtins, configparser, json, re, subprocess, sys, time
import pytest
import codette_nb
from codette_nb.docs import module_of, readme

HEAVY = 'torch', 'ipywidgets', 'matplotlib', 'gguf', 'xllamacpp', 'sentencepiece', 'numpy', 'transformers'

def settings(root):
    parser = configparser.ConfigParser(delimiters=['='])
    parser.read(root/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']

def imports(path, name):
    "Every module that the file of the module `name` imports, wherever in the file; nbdev writes our own relatively."
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): found += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join([*name.split('.')[:-node.level], *filter(None, [node.module])]) if node.level else node.module
            found += [base] + [f'{base}.{a.name}' for a in node.names]
    return found

def modules(root, notebooks):
    "Exported modules in the order of their notebooks: full name -> file."
    names = [module_of(nb) for path, nb in notebooks.items() if path.startswith('nbs/')]
    return {f'codette_nb.{n}': root/'codette_nb'/(n.replace('.', '/') + '.py') for n in names if n}

def test_version(root):
    assert settings(root)['version'] == codette_nb.__version__

def test_import_is_light():
    "`import codette_nb` brings in nothing heavy and takes next to no time."
    code = f'import sys, codette_nb, codette_nb.core; print([m for m in {HEAVY} if m in sys.modules])'
    start = time.perf_counter()
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.strip() == '[]'
    assert time.perf_counter() - start < 5   # far above what `benchmarks/import_time.py` measures, for busy machines

def test_every_module_is_exported(root, notebooks):
    made = {p for p in (root/'codette_nb').rglob('*.py') if p.name not in ('__init__.py', '_modidx.py')}
    assert made == set(modules(root, notebooks).values())

def test_order_of_dependency(root, notebooks):
    "A room imports only rooms whose notebook comes earlier."
    rooms = modules(root, notebooks)
    later = {name: list(rooms)[i:] for i, name in enumerate(rooms)}
    wrong = [f'{name} imports {m}' for name, path in rooms.items() for m in set(imports(path, name)) & set(later[name])]
    assert not wrong

def test_packages_of_one_room_only(root, notebooks):
    owners = {'ipywidgets': 'codette_nb.widgets.', 'gguf': 'codette_nb.quantize.', 'xllamacpp': 'codette_nb.quantize.', 'numba': 'codette_nb.quantize.',
              'nbdev': 'codette_nb.docs', 'sphinx': 'codette_nb.docs', 'fastcore': 'codette_nb.docs'}
    wrong = [f'{name} imports {m}' for name, path in modules(root, notebooks).items() for m in imports(path, name)
             if not name.startswith(owners.get(m.split('.')[0], 'codette_nb'))]
    assert not wrong

def test_no_pickle_no_eval(root, notebooks):
    "Nothing that is read can run code."
    for name, path in modules(root, notebooks).items():
        assert not {'pickle', 'dill', 'joblib', 'shelve', 'marshal'} & {m.split('.')[0] for m in imports(path, name)}, name
        calls = {n.func.id for n in ast.walk(ast.parse(path.read_text(encoding='utf-8'))) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        assert not {'eval', 'exec'} & calls, name

def test_notebooks_are_small(root, notebooks):
    sizes = {path: (root/path).stat().st_size for path in notebooks}
    assert {p: s for p, s in sizes.items() if s > 200_000} == {}

def test_notebooks_have_ids(root, notebooks):
    "Exported modules carry the ids of their cells, so they have to be there and to stay."
    for path in notebooks:
        ids = [c.get('id') for c in json.loads((root/path).read_text(encoding='utf-8'))['cells']]
        assert all(ids) and len(set(ids)) == len(ids), path

def test_notebooks_open_with_a_title(notebooks):
    for path, nb in notebooks.items():
        first = nb.cells[0]
        assert first.cell_type == 'markdown' and re.match(r'# .+\n\n> .+', first.source), path

def test_notebooks_ran_without_errors(notebooks):
    "No saved output is a traceback."
    wrong = [f'{path}: {c.id}' for path, nb in notebooks.items() for c in nb.cells for o in c.get('outputs', []) if o.output_type == 'error']
    assert not wrong

def committed(root):
    "Names of the files in the repository."
    out = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True)
    if out.returncode: pytest.skip('not a git checkout: there is no list of committed files')
    return [root/f for f in out.stdout.split('\0') if f and (root/f).is_file()]

def test_no_paths_of_one_machine(root):
    "Nothing committed names a folder that exists on one machine only."
    paths = re.compile(r'(?<![\w.<])/(?:home|Users|root|work|tmp|opt)/[\w.-]+')
    wrong = []
    for f in committed(root):
        if f.suffix in ('.png', '.ico') or f == root/'tests/test_repository.py': continue
        for i, line in enumerate(f.read_text(encoding='utf-8').splitlines(), 1):
            wrong += [f'{f.relative_to(root)}:{i}: {m}' for m in paths.findall(line)]
    assert not wrong

def test_readme_is_current(root):
    assert (root/'README.md').read_text(encoding='utf-8') == readme(root)

def test_readme_examples_name_what_exists(root):
    "Every name that the README's Python uses is one of Python's, of the example, or of the module it imports from."
    everything = pytest.importorskip('codette_nb.all', reason='codette_nb.all is not exported yet')
    blocks = re.findall(r'^```python\n(.*?)^```', (root/'README.md').read_text(encoding='utf-8'), flags=re.M | re.S)
    assert blocks
    for block in blocks:
        names = [n for n in ast.walk(ast.parse(block)) if isinstance(n, ast.Name)]
        known = {n.id for n in names if isinstance(n.ctx, ast.Store)} | set(dir(builtins)) | set(dir(everything))
        assert {n.id for n in names} - known == set(), block

def test_rooms_are_on_the_map(root, notebooks):
    "The table of rooms on the front page knows every number that is in use."
    rows = re.findall(r'^\| `(\d+)[a-z]*`(?:–`(\d+)[a-z]*`)? \|', (root/'README.md').read_text(encoding='utf-8'), flags=re.M)
    spans = [(int(a), int(b or a)) for a, b in rows]
    numbers = {int(m[1]) for m in (re.match(r'nbs/(\d+)', p) for p in notebooks) if m}
    assert spans and {n for n in numbers if not any(a <= n <= b for a, b in spans)} == set()
