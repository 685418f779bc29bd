"""Reports lie beside the runs of a store, wherever that is."""

from expandr_core.reports.files import has_report, keep_index, place_of


def test_the_index_of_a_store_on_s3_says_that_there_is_no_run(remote):
    where = keep_index(remote)
    assert where == "s3://bucket/some/prefix/reports/index.html"
    page = remote.filesystem.cat_file(f"{remote.root}/reports/index.html").decode()
    assert "There is no finished run yet." in page
    assert remote.filesystem.info(f"{remote.root}/reports/index.html")["ContentType"] == "text/html"
    assert not has_report(remote, "nobody")
    assert place_of(remote, "nobody") == "s3://bucket/some/prefix/reports/nobody/report.html"
