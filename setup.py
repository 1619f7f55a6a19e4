"Package metadata lives in `settings.ini`, where nbdev reads it too."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
readme = here/'README.md'
extras = {k: cfg[f'{k}_requirements'].split() for k in ('files', 'teacher', 'tensorboard', 'dev')}
extras['dev'] += extras['files'] + extras['teacher'] + extras['tensorboard']  # everything that the tests touch

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else cfg['description'],
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    license='Apache-2.0',
    url=cfg['git_url'],
    packages=find_packages(include=['codette_nb', 'codette_nb.*']),
    python_requires=f">={cfg['min_python']},<3.14",
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    zip_safe=False,
)
