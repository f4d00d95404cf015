module absent

go 1.26.0
