"""CSV files of labels: their columns, and the files that their rows name."""

import os
import time

import pytest

from dualcl_jax import data
from dualcl_jax.data.describe import describe_data
from dualcl_jax.data.images.table import Names
from dualcl_jax.system.errors import UserError
from tests.support.image_folders import folder_config, named, write_images


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    write_images(tmp_path / 'images', [f'{number:03}.ppm' for number in range(8)])
    return tmp_path / 'images'


def rows(form: str, count: int = 8) -> str:
    return ''.join(form.format(n=number, label=('cat', 'dog')[number % 2], site=number % 3) for number in range(count))


TABLES = {
    # name: content, columns
    'by name': ('file_name,hospital,label\n' + rows('{n:03}.ppm,site{site},{label}\n'), 'file_name and label'),
    'index first': (',file_name,label\n' + rows('{n},{n:03}.ppm,{label}\n'), 'file_name and label'),
    'no suffixes': ('image_id,label\n' + rows('{n:03},{label}\n'), 'image_id and label'),
    'other case': ('Image,Class\n' + rows('{n:03}.ppm,{label}\n'), 'Image and Class'),
    'unknown class column': ('id,breed\n' + rows('{n:03},{label}\n'), 'id and breed'),
    'two paths': ('id,file,label\n' + rows('x{n},{n:03}.ppm,{label}\n'), 'file and label'),
    'unknown header': ('picture,animal\n' + rows('{n:03}.ppm,{label}\n'), '1 and 2'),
    'no header': (rows('{n:03}.ppm,{label}\n'), '1 and 2'),
    'tabs': ('file\tlabel\n' + rows('{n:03}.ppm\t{label}\n'), 'file and label'),
    'semicolons': ('file;label\n' + rows('{n:03}.ppm;{label}\n'), 'file and label'),
    'other folders': ('path,label\n' + rows('/home/me/set/{n:03}.ppm,{label}\n'), 'path and label'),
    'Windows': ('path,label\n' + rows('set\\{n:03}.ppm,{label}\n'), 'path and label'),
    'UTF-16': ('file\tlabel\n' + rows('{n:03}.ppm\t{label}\n'), 'file and label'),
    'a comma in a header of semicolons': (
        'file;label;comment, if any\n' + rows('{n:03}.ppm;{label};\n'),
        'file and label',
    ),
    'commas in values of tabs': ('site0, 000.ppm\tcat\n' + rows('{n:03}.ppm\t{label}\n'), '1 and 2'),
    'a column after it': ('path,label,width\n' + rows('{n:03}.ppm,{label},9\n'), 'path and label'),
}


@pytest.mark.parametrize('name', TABLES)
def test_columns(root, tmp_path, name):
    content, columns = TABLES[name]
    path = tmp_path / 'table.csv'
    path.write_text(content, encoding='utf-16' if name == 'UTF-16' else 'utf-8')
    train, _ = data.load(folder_config(root, labels=str(path), test_fraction=0.0))
    assert train.class_names == ('cat', 'dog')
    assert train.labels.tolist() == [0, 1] * 4
    said = describe_data(data.Splits(train, None))['classes']
    assert said.endswith(f'columns {columns}; 0 rows name no file, 0 files are in no row'), said


def test_rows_without_a_class_are_ignored(root, tmp_path):
    (tmp_path / 'table.csv').write_text('path,label\n000.ppm,\n000.ppm,cat\n\n001.ppm,dog\n001.ppm, \ngone.ppm,\n')
    train, _ = data.load(folder_config(root, labels=str(tmp_path / 'table.csv'), test_fraction=0.0))
    assert train.labels.tolist() == [0, 1] + [-1] * 6
    assert '0 rows name no file, 6 files are in no row' in train.report['labels']


def test_rows_and_files_without_a_partner_are_counted(root, tmp_path):
    (tmp_path / 'table.csv').write_text('path,label\n' + rows('{n:03}.ppm,{label}\n', 6) + 'a.ppm,cat\nb.ppm,dog\n')
    train, _ = data.load(folder_config(root, labels=str(tmp_path / 'table.csv'), test_fraction=0.0))
    assert len(train) == 8
    assert train.labels.tolist() == [0, 1] * 3 + [-1] * 2
    left_out = train.report['left_out']
    assert left_out['rows of the table that name no file'] == {'count': 2, 'names': ['a.ppm', 'b.ppm']}
    about = left_out['used without a class: no row of the table names it']
    assert about == {'count': 2, 'names': ['006.ppm', '007.ppm']}
    assert '2 rows name no file, 2 files are in no row' in train.report['labels']


def test_columns_that_are_named(root, tmp_path):
    (tmp_path / 'table.csv').write_text('a,hospital,b\n' + rows('{n:03}.ppm,site{site},{label}\n'))
    fields = {'labels': str(tmp_path / 'table.csv'), 'test_fraction': 0.0, 'path_column': 'a'}
    train, _ = data.load(folder_config(root, **fields, label_column='hospital'))
    assert train.class_names == ('site0', 'site1', 'site2')
    train, _ = data.load(folder_config(root, **fields, label_column='b'))
    assert train.class_names == ('cat', 'dog')


@pytest.mark.parametrize(
    ('content', 'fields', 'message'),
    [
        ('file,label,class\n0.ppm,a,b\n', {}, r'which column is the class\? .*label_column.* file, label, class$'),
        ('file,a,b\n0.ppm,a,b\n', {}, r'which column is the class\? .*label_column.* file, a, b$'),
        ('a,b,label\n0.ppm,a,b\n', {}, r'which column is the path\? .*path_column.* a, b, label$'),
        ('000.ppm,site,cat\n', {}, r'the first line, 000\.ppm, site, cat, does not say .* path,label'),
        ('file,label\n0.ppm,a\n', {'label_column': 'klass'}, r'label_column=klass: no such column.* file, label$'),
        ('file,label\n0.ppm,a\n', {'path_column': 'x'}, r'path_column=x: no such column.* file, label$'),
        ('file,label\n"a\n\nb",cat\n\n001.ppm\n', {}, r'line 6 has 1 columns'),
    ],
)
def test_ambiguous_tables_are_refused_in_one_line(root, tmp_path, content, fields, message):
    (tmp_path / 'table.csv').write_text(content)
    with pytest.raises(UserError, match=message) as error:
        data.load(folder_config(root, labels=str(tmp_path / 'table.csv'), **fields))
    assert len(str(error.value).splitlines()) == 1


def test_a_name_of_several_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    write_images(tmp_path / 'images', named(('x', 'y'), 2))
    (tmp_path / 'table.csv').write_text('path,label\n0.ppm,cat\n')
    with pytest.raises(UserError, match=r'line 2 names 0\.ppm, but 2 files have this name; .* such as x/0\.ppm'):
        data.load(folder_config(tmp_path / 'images', labels=str(tmp_path / 'table.csv')))


def test_of_files_that_differ_in_their_suffixes_that_of_the_row_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    names = ['images/0.JPG', 'images/1.jpg', 'masks/0.png', 'masks/1.png', 'x/2.jpg', 'x/2.png']
    write_images(tmp_path / 'images', names)
    (tmp_path / 'table.csv').write_text('path,label\n0.jpg,cat\n1.jpg,dog\n2.png,cat\n')
    train, _ = data.load(folder_config(tmp_path / 'images', labels=str(tmp_path / 'table.csv'), test_fraction=0.0))
    assert train.labels.tolist() == [0, 1, -1, -1, -1, 0]


@pytest.mark.parametrize('order', [1, -1])
def test_a_row_that_names_a_file_more_closely_counts(root, tmp_path, order):
    lines = ['000.ppm,cat', 'extra/000.ppm,dog', 'more/000.ppm,cow', '001,dog', 'extra/001.ppm,cat', 'extra/2.ppm,cat']
    (tmp_path / 'table.csv').write_text('\n'.join(['path,label', *lines[::order]]))
    train, _ = data.load(folder_config(root, labels=str(tmp_path / 'table.csv'), test_fraction=0.0))
    assert train.labels.tolist() == [0, 1] + [-1] * 6
    assert '4 rows name no file' in train.report['labels']


def test_folders_must_agree_as_far_as_both_paths_have_any(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    write_images(tmp_path / 'images', ['a/siteA/7.ppm', 'a/siteB/7.ppm', 'a/siteB/8.ppm', '9.ppm'])
    lines = ['path,label', 'siteC/8.ppm,cat', 'siteB\\7,cat', 'set/a/siteA/7.ppm,dog', 'siteC/9.ppm,dog']
    (tmp_path / 'table.csv').write_text('\n'.join(lines))
    train, _ = data.load(folder_config(tmp_path / 'images', labels=str(tmp_path / 'table.csv'), test_fraction=0.0))
    assert train.labels.tolist() == [1, 1, 0, -1]
    assert train.report['left_out']['rows of the table that name no file'] == {'count': 1, 'names': ['siteC/8.ppm']}


def test_loose_paths_are_found_as_by_comparing_all():
    """Among all paths of a few names: as many files as the comparison of every folder finds."""
    parts = ['', 'a/', 'b/', 'a/b/', 'b/a/', 'a.b/', 'b-/', 'a/b/a/', '/a/', 'a\\', 'a/ /', '../a/']
    names = [f'{part}{name}' for part in parts for name in ('x', 'x.png', 'x.PNG', 'x.y', 'x0', 'x-1', 'y.jpg', '.png')]
    paths = dict(
        enumerate(name for name in names if os.path.normpath(name) == name and not name.startswith(('/', '.')))
    )

    def split(path: str) -> list[str]:
        stem, suffix = os.path.splitext(path.replace('\\', '/'))
        return [*(stem if suffix.lower() in ('.png', '.jpg') else stem + suffix).split('/')][::-1]

    def suffix(path: str) -> str:
        return os.path.splitext(path.replace('\\', '/'))[1]

    def compared(name: str) -> list[int]:
        name = os.path.normpath(name)
        same = [file for file, path in paths.items() if path == name]
        equal = [file for file, path in paths.items() if split(path) == split(name)]
        both = ((file, zip(split(path), split(name), strict=False)) for file, path in paths.items())
        found = same or equal or [file for file, pairs in both if all(one == other for one, other in pairs)]
        alike = [file for file in found if suffix(paths[file]) == suffix(name)]
        return alike or [file for file in found if suffix(paths[file]).lower() == suffix(name).lower()] or found

    table = Names(paths)
    for name in names:
        assert sorted(table.find(name, '')) == compared(name), name


def test_loose_paths_are_found_without_comparing_all():
    """Files of one name in folders of one name, and rows with one more folder."""
    paths = {number: f'patient{number}/views/scan.png' for number in range(20_000)}
    names, began = Names(paths), time.process_time()
    for number in range(20_000):
        assert names.find(f'images/patient{number}/views/scan.png', '') == [number]
        assert names.find(f'patient{number}\\views\\scan', '') == [number]
    assert names.find('images/patient/views/scan.png', '') == []
    assert time.process_time() - began < 10  # comparing all takes minutes


def test_unbalanced_quotation_marks_hide_no_rows(root, tmp_path):
    for path in (tmp_path / 'table.csv', root / 'metadata.csv'):
        path.write_text('file_name,label\n000.ppm,"a\nb"\n001.ppm,"cat\n' + rows('{n:03}.ppm,{label}\n'))
    message = r'the row that begins in line 4 is not CSV \(.*\); close every quotation mark'
    with pytest.raises(UserError, match=r'data\.labels=.*table\.csv: ' + message):
        data.load(folder_config(root, labels=str(tmp_path / 'table.csv')))
    train, _ = data.load(folder_config(root, test_fraction=0.0))
    assert train.class_names is None
    assert 'metadata.csv: the row that begins in line 4 is not CSV' in train.report['labels']


def test_a_row_in_one_line_needs_no_balanced_quotation_marks(root, tmp_path):
    lines = [f'{number:03}.ppm,"a "{number}" mm screw", "cat" ' for number in range(3)]
    lines += ['"003.ppm" ,"b" ,dog', f'004.ppm,"{"long " * 40_000}",cat', '005.ppm,3" nail,dog']
    (root / 'metadata.csv').write_text('\n'.join(['file_name,text,label', *lines]))
    train, _ = data.load(folder_config(root, test_fraction=0.0))
    assert train.class_names == ('"cat"', 'cat', 'dog')
    assert train.labels.tolist() == [0, 0, 0, 2, 1, 2, -1, -1]


def test_auto_takes_the_metadata_of_a_flat_folder(root):
    (root / 'metadata.csv').write_text(TABLES['by name'][0])
    train, _ = data.load(folder_config(root, test_fraction=0.0))
    assert train.class_names == ('cat', 'dog')
    assert 'metadata.csv, columns file_name and label' in train.report['labels']
    (root / 'metadata.csv').write_text('file_name,site,doctor\n' + rows('{n:03}.ppm,{site},d\n'))
    train, _ = data.load(folder_config(root, test_fraction=0.0))
    assert train.class_names is None
    assert train.report['left_out']['table']['names'] == ['metadata.csv']
    assert 'metadata.csv: which column is the class?' in train.report['labels']


def test_a_table_and_split_folders(tmp_path, monkeypatch):
    """The split for testing that the table labels is preferred."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    write_images(tmp_path / 'images', named(('train', 'test', 'val'), 4))
    names = named(('train', 'val'), 4)
    table = ''.join(f'{name},{"ab"[number % 2]}\n' for number, name in enumerate(names))
    (tmp_path / 'table.csv').write_text('path,label\n' + table)
    train, test = data.load(folder_config(tmp_path / 'images', labels=str(tmp_path / 'table.csv')))
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 0, 1], [0, 1, 0, 1])
    assert train.report['splits']['test']['folder'] == 'val/'
    assert train.report['splits']['left_out'] == ['test/']
